"""The style of the page: one column, light and dark, screen and paper."""

STYLESHEET = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f6f8fa; --ink: #1f2328; --muted: #57606a; --rule: #d8dee4;
  --accent: #0067a3; --good: #0b6b50; --bad: #b03a00; --bad-panel: #fff3ec;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --panel: #1c2128; --ink: #e6e8eb; --muted: #a2abb5; --rule: #343c45;
    --accent: #6cc0f0; --good: #52c6a0; --bad: #ff9a66; --bad-panel: #2b1d15;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 47rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
main.wide { max-width: 76rem; }
.wide > section > figure { max-width: 47rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.4rem; overflow-wrap: anywhere; }
h2 {
  font-size: 1.2rem; line-height: 1.3; margin: 2.3rem 0 0.8rem; padding-top: 0.9rem;
  border-top: 1px solid var(--rule);
}
h3 { font-size: 1rem; margin: 1.6rem 0 0.3rem; }
p { margin: 0.6rem 0; max-width: 42rem; }
.eyebrow { color: var(--muted); font-size: 0.85rem; margin: 0 0 0.3rem; }
.about { color: var(--muted); margin: -1rem 0 1.4rem; max-width: none; overflow-wrap: anywhere; }
.headline {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10.2rem, 1fr)); gap: 0.75rem;
  margin: 0; padding: 0;
}
.headline > div {
  background: var(--panel); border-radius: 6px; padding: 0.8rem 0.9rem;
  border-top: 3px solid var(--rule);
}
.headline > .good { border-top-color: var(--good); }
.headline > .bad { border-top-color: var(--bad); background: var(--bad-panel); }
.headline dt { color: var(--muted); font-size: 0.82rem; }
.headline dd { margin: 0; }
.headline .figure {
  font-size: 1.35rem; font-weight: 600; line-height: 1.3; margin: 0.15rem 0;
  font-variant-numeric: tabular-nums;
}
.headline .figure small { font-size: 0.85rem; font-weight: 400; color: var(--muted); }
.absent .figure { color: var(--muted); font-size: 1.05rem; font-weight: 400; }
.good .figure { color: var(--good); }
.bad .figure { color: var(--bad); }
.headline .note { color: var(--muted); font-size: 0.82rem; line-height: 1.4; }
.verdict { border-left: 4px solid var(--rule); padding: 0.1rem 0 0.1rem 0.9rem; }
.verdict.good { border-left-color: var(--good); }
.verdict.bad { border-left-color: var(--bad); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th, td { text-align: left; vertical-align: baseline; padding: 0.38rem 0.9rem 0.38rem 0; }
thead th { color: var(--muted); font-weight: 500; font-size: 0.85rem; }
tbody tr { border-top: 1px solid var(--rule); }
tbody th { font-weight: 500; }
tbody tr:last-child { border-bottom: 1px solid var(--rule); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.remark { color: var(--muted); }
tr.bad td, tr.bad th { color: var(--bad); }
.name { overflow-wrap: anywhere; }
.plain th, .plain td { padding-right: 0.95rem; }
.keys th { width: 12rem; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: 0.87rem; line-height: 1.45; margin-top: 0.5rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.4rem; }
.pair figure { margin: 0.6rem 0; }
.gallery {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem 1.6rem;
}
.tiles {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: 1rem 0.9rem;
  margin: 0.8rem 0;
}
.tiles figure { margin: 0; }
.tiles figcaption { white-space: pre-line; font-variant-numeric: tabular-nums; }
.plain { white-space: nowrap; font-size: 0.88rem; }
.missing {
  max-width: none;
  border: 1px dashed var(--rule); border-radius: 6px; padding: 0.7rem 0.9rem; color: var(--muted);
}
code, pre { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 0.9em; }
code { overflow-wrap: anywhere; }
pre {
  background: var(--panel); border-radius: 6px; padding: 0.8rem 0.9rem; margin: 0.7rem 0;
  line-height: 1.5; font-size: 0.82rem; white-space: pre-wrap; overflow-wrap: anywhere;
}
summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 3rem; color: var(--muted); font-size: 0.82rem; }
@media (min-width: 34.01rem) {
  tbody th:not(.name) { white-space: nowrap; }
}
@media (max-width: 34rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  .pair, .gallery { grid-template-columns: 1fr; gap: 0; }
  .explained tr { display: grid; grid-template-columns: 1fr auto; padding: 0.3rem 0; }
  .explained th, .explained td { padding-top: 0.1rem; padding-bottom: 0.1rem; }
  .explained td.number { padding-right: 0; }
  .explained td.remark { grid-column: 1 / -1; font-size: 0.87rem; }
}
@media print {
  @page { margin: 16mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  figure, .headline > div, tr { break-inside: avoid; }
  .headline > div { border: 1px solid var(--rule); border-top-width: 3px; }
  details > * { display: block; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""
