"""Colours and layout of the report: light and dark by the reader's preference, any width."""

_LIGHT = """
--page:#f6f7f9;--card:#ffffff;--ink:#1b2430;--soft:#5a6675;--faint:#e4e8ed;--rule:#c3cbd5;
--good:#16794c;--bad:#b3261e;--warn:#fff4dd;--warn-ink:#6a4700;
--c1:#2667d9;--c2:#d06a00;--c3:#13855a;--c4:#8548c9;--c5:#c62f66;--c6:#0a86a3;--c7:#84740a;--c8:#6d5a48;
--activation:#2e6fd8;--gradient:#e08214;--adapter:#8a55cc;--weights:#11939c;--evaluation:#5aa35f;--control:#8c97a5;
--collate:#9aa4b2;--forward:#5b9be6;--backward:#1f4fa8;--encode:#4db6a0;--decode:#127c68;--send:#e0a63c;--receive:#b9802a;--wait:#b9c3ce;--step:#9a62d3;--teach:#c2477a;
--fp32:#b9c2cd;--fp16:#93a0af;--sent:#2667d9;
"""
_DARK = """
--page:#10151c;--card:#18202a;--ink:#e6ebf2;--soft:#98a5b5;--faint:#273240;--rule:#435164;
--good:#5fd39a;--bad:#ff8a80;--warn:#33291a;--warn-ink:#f3cf8a;
--c1:#6ea6ff;--c2:#f5a04c;--c3:#4fc795;--c4:#bd95f5;--c5:#f57fa8;--c6:#4fc6de;--c7:#d3c04d;--c8:#c4ae97;
--activation:#6ea6ff;--gradient:#f0a04a;--adapter:#b58cf0;--weights:#3fbfc7;--evaluation:#7cc481;--control:#7c899a;
--collate:#7c899a;--forward:#8fc0ff;--backward:#4a80e0;--encode:#6fd6bf;--decode:#2a9d86;--send:#f0bf63;--receive:#c99239;--wait:#55647a;--step:#bd95f5;--teach:#f57fa8;
--fp32:#4a5768;--fp16:#66758a;--sent:#6ea6ff;
"""

_SERIES = "".join(f".c{number}{{--c:var(--c{number})}}" for number in range(1, 9))
_NAMED = "".join(
    f".{name}{{--c:var(--{name})}}"
    for name in (
        "activation", "gradient", "adapter", "weights", "evaluation", "control",
        "collate", "forward", "backward", "encode", "send", "receive", "decode", "wait", "step",
        "teach",
        "fp32", "fp16", "sent",
    )
)  # fmt: skip

COLOURS = f":root{{{_LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}{_SERIES}{_NAMED}"
"""The palette as CSS variables, and the classes that choose from it."""

CHARTS = """
.gap{--c:transparent}
.chart{display:block;width:100%;max-width:480px;height:auto;margin:0 auto;overflow:visible}
.axis{font:11.5px system-ui,sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}
.mid{text-anchor:middle}.end{text-anchor:end}
.grid{stroke:var(--faint)}.zero{stroke:var(--rule)}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.d1 .line{stroke-dasharray:7 4}.d2 .line{stroke-dasharray:2 4}.d3 .line{stroke-dasharray:9 3 2 3}
.dot{fill:var(--c);stroke:var(--card);stroke-width:1.5}
.paper{fill:var(--card)}.heading{font:600 14px system-ui,sans-serif;fill:var(--ink)}
.hit{fill:var(--c);fill-opacity:0}.hit:hover{fill-opacity:.22}
"""
"""How lines, axes and points look."""

PAGE = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1240px;margin:0 auto;padding:28px 24px 56px}
h1{font-size:1.55rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.12rem;margin:36px 0 4px}
h3{font-size:.95rem;font-weight:600;margin:0 0 10px}
p{margin:0}.lead{color:var(--soft);max-width:78ch}.lead+*{margin-top:14px}
.facts{color:var(--soft);overflow-wrap:anywhere}
.badge{display:inline-block;padding:0 10px;border-radius:99px;font-size:.8rem;font-weight:600;
border:1px solid;vertical-align:3px;margin-left:10px}
.badge.good{color:var(--good)}.badge.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(205px,1fr));gap:12px;margin-top:20px}
.card,.tile{background:var(--card);border:1px solid var(--faint);border-radius:10px;min-width:0}
.tile{padding:13px 16px}.card{padding:16px 18px}
.tile .name{color:var(--soft);font-size:.84rem}
.tile .big{font-size:1.5rem;font-weight:650;line-height:1.3;font-variant-numeric:tabular-nums;
white-space:nowrap}
.tile .from{color:var(--soft);font-weight:450;font-size:1.05rem}
.tile .note{color:var(--soft);font-size:.84rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:14px;
margin-top:14px}
.charts.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;margin:0 0 12px;padding:0;
font-size:.86rem;color:var(--soft)}
.legend li{display:flex;align-items:center;gap:6px;min-width:0;overflow-wrap:anywhere}
.section>.legend{margin:10px 0 0}
.swatch,.key{width:12px;height:12px;flex:none}.key{width:24px}.swatch rect,.part{fill:var(--c)}
.bars{display:grid;grid-template-columns:minmax(60px,max-content) 1fr max-content;gap:7px 10px;
align-items:center;font-size:.86rem}
.bars .label{max-width:11em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bars .value{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{display:block;width:100%;height:18px;border-radius:3px;overflow:hidden}
.part{stroke:var(--card);stroke-width:1}.part:hover{fill-opacity:.75}
.scale{position:relative;height:16px;color:var(--soft);font-size:.76rem;
font-variant-numeric:tabular-nums;border-top:1px solid var(--rule);padding-top:2px}
.scale span{position:absolute;transform:translateX(-50%);white-space:nowrap}
.card .foot{color:var(--soft);font-size:.84rem;margin-top:10px}
.card.scroll{overflow-x:auto;margin-top:14px;padding:0}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:8px 11px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--faint)}
thead th{white-space:normal}th{color:var(--soft);font-weight:550;vertical-align:bottom}
tbody tr:last-child td,tbody tr:last-child th{border-bottom:0}
tbody th{color:var(--ink);font-weight:600}
th:first-child,td:first-child,.left{text-align:left}
td .from{color:var(--soft)}
details{margin-top:12px}summary{cursor:pointer;color:var(--soft)}
pre{background:var(--card);border:1px solid var(--faint);border-radius:10px;padding:14px 16px;
overflow-x:auto;font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.faults{list-style:none;margin:12px 0 0;padding:0}
.faults li{background:var(--warn);color:var(--warn-ink);border-radius:8px;padding:7px 12px;
margin-top:6px;overflow-wrap:anywhere}
.none{color:var(--soft)}
footer{color:var(--soft);font-size:.84rem;margin-top:40px;overflow-wrap:anywhere}
@media(max-width:560px){main{padding:18px 12px 40px}.card{padding:14px 12px}
.tiles{grid-template-columns:1fr 1fr;gap:8px}.tile{padding:10px 12px}
.tile:last-child:nth-child(odd){grid-column:1/-1}.tile .big{font-size:1.15rem}
.tile .from{font-size:.9rem}.bars .label{max-width:8em}
th,td{padding:7px 9px}}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
"""
"""How the page is laid out."""
