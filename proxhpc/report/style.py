"""The page's style sheet. Its hash is all that the page's security policy lets in."""

STYLE = """
:root {
  --ink: #1c1f23; --soft: #5c646e; --line: #dfe3e8; --paper: #ffffff; --tint: #f5f7f9;
  --kept: #2f8f5b; --edited: #3a76c4; --dropped: #c65a49; --quarantined: #8a5bb5;
  --duplicates: #b98a2c; --written: #2f8f5b; --in: #6b7480;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e7eaee; --soft: #9aa4b0; --line: #333a43; --paper: #14171b; --tint: #1c2127;
    --kept: #4fb57f; --edited: #6aa2ea; --dropped: #e28375; --quarantined: #b48bdb;
    --duplicates: #d9ae57; --written: #4fb57f; --in: #8b95a1;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0; overflow-wrap: anywhere; }
h2 {
  font-size: 1.1rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line);
}
.note { color: var(--soft); font-size: .87rem; max-width: 48rem; overflow-wrap: anywhere; }
.figures {
  list-style: none; padding: 0; margin: 1.25rem 0 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr));
}
.figures li { background: var(--tint); border-radius: .5rem; padding: .8rem 1rem; }
.figures b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.figures span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .9rem; min-width: 20rem; }
th { text-align: left; color: var(--soft); font-weight: 500; vertical-align: bottom; }
th, td { padding: .3rem 1.4rem .3rem 0; border-bottom: 1px solid var(--line); }
svg.flow { min-width: 34rem; max-width: 46rem; }
td { vertical-align: top; overflow-wrap: break-word; max-width: 26rem; }
.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
h3 { font-size: .95rem; margin: 1.5rem 0 .25rem; }
.charts {
  display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr));
}
.chart { max-width: 30rem; }
.wide svg.bar { width: 8rem; min-width: 5rem; height: .65rem; margin: .4rem 0 0; }
.wide svg.lane { width: 22rem; min-width: 12rem; height: 1.4rem; margin: 0; }
svg.lane path, svg.chart path { opacity: .55; }
.track { fill: var(--line); }
.noted { fill: var(--duplicates); }
.trouble { color: var(--dropped); }
.copy { margin: .6rem 0; max-width: 48rem; overflow-wrap: anywhere; }
.copy span { color: var(--soft); font-size: .82rem; display: block; }
details { border-bottom: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary span { color: var(--soft); font-size: .82rem; }
pre {
  margin: .5rem 0; padding: .6rem .8rem; background: var(--tint); border-radius: .4rem;
  font: 12px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
.program { color: var(--edited); }
.diff span { display: block; min-height: 1.45em; }
.removed { color: var(--dropped); }
.added { color: var(--kept); }
.skipped { color: var(--soft); }
mark { background: none; color: inherit; font-weight: 700; text-decoration: underline; }
svg { display: block; width: 100%; height: auto; margin: .5rem 0 1rem; }
svg text { fill: var(--ink); font-size: 13px; }
svg .soft { fill: var(--soft); }
svg path { opacity: .28; }
.in { fill: var(--in); } .kept { fill: var(--kept); } .edited { fill: var(--edited); }
.dropped { fill: var(--dropped); } .quarantined { fill: var(--quarantined); }
.duplicates { fill: var(--duplicates); } .written { fill: var(--written); }
@media print {
  :root { color-scheme: light; }
  main { max-width: none; padding: 0; }
  section { break-inside: avoid; }
  .wide { overflow: visible; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
