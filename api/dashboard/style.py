"""How pages look: one sheet, two palettes, no file from elsewhere."""

from __future__ import annotations

# What the reader chooses, as NiceGUI's dark mode has it; None follows the system.
THEMES: dict[str, bool | None] = {"auto": None, "light": False, "dark": True}
COLOURS = ("#2f7ed8", "#d9822b", "#3a9d5d", "#a05bc4", "#c8505a", "#2a9d9d")
STYLE = """
:root{--bg:#f5f6f8;--card:#fff;--ink:#1b2430;--soft:#566071;--line:#d5dbe3;--go:#1c5bb8;
--good:#1c6b3a;--warn:#8a5300;--bad:#b3261e;--goodbg:#e3f3e8;--warnbg:#fdf0d9;--badbg:#fbe5e3;
--nonebg:#e9ecf1}
body.body--dark{--bg:#12161c;--card:#1a2029;--ink:#e6eaf0;--soft:#a7b1be;--line:#36404d;--go:#8ab8f8;
--good:#86d6a2;--warn:#f2c078;--bad:#ff9d94;--goodbg:#1c3325;--warnbg:#3a2d16;--badbg:#3f2220;
--nonebg:#2a323d}
body,body.body--dark{background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
.nicegui-content{padding:0;gap:0;align-items:stretch}
a{color:var(--go)}
:focus-visible{outline:3px solid var(--go);outline-offset:2px;border-radius:4px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;z-index:9}
.top{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;align-items:center;padding:.5rem 1.25rem;
background:var(--card);border-bottom:1px solid var(--line)}
.brand{font-weight:700;font-size:1.1rem;text-decoration:none;color:var(--ink)}
.top nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem}
.top nav a{text-decoration:none;padding:.25rem 0}
.top nav a[aria-current]{border-bottom:2px solid var(--go);font-weight:600}
.who{margin-left:auto;display:flex;gap:.75rem;align-items:center}
.who .q-field{min-width:9rem}.soft{color:var(--soft);font-size:.9rem}
.page{padding:1rem 1.25rem 3rem;max-width:1440px;width:100%;margin:0 auto;box-sizing:border-box;
display:block}
.page:focus{outline:none}
h1{font-size:1.5rem;line-height:1.3;margin:.25rem 0 .5rem;font-weight:700;overflow-wrap:anywhere}
h3{font-size:1rem;line-height:1.3;margin:.75rem 0 .25rem;font-weight:600}
p{margin:.25rem 0}
h2{font-size:1.1rem;line-height:1.3;margin:0 0 .5rem;font-weight:600}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem;
margin-top:1rem;min-width:0}
.grid2{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:0 1rem}
.grid3{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:0 1rem}
.facts{display:flex;flex-wrap:wrap;gap:.6rem 2.25rem;margin:.25rem 0 .5rem}
.facts>div>div:first-child{color:var(--soft);font-size:.85rem}
.facts>div>div:last-child{font-weight:600;overflow-wrap:anywhere}
.tag{display:inline-block;padding:0 .5rem;border-radius:99px;font-size:.85rem;font-weight:600;
white-space:nowrap}
.good{color:var(--good);background:var(--goodbg)}.warn{color:var(--warn);background:var(--warnbg)}
.bad{color:var(--bad);background:var(--badbg)}.none{color:var(--soft);background:var(--nonebg)}
.note{padding:.6rem .8rem;border-radius:8px;margin:.5rem 0;overflow-wrap:anywhere}
.empty{text-align:center;padding:2rem 1rem;color:var(--soft);overflow-wrap:anywhere}
.empty .say{font-size:1.05rem;color:var(--ink);font-weight:600}
pre,code{font:13px/1.5 ui-monospace,monospace}
pre{background:var(--bg);border:1px solid var(--line);border-radius:8px;padding:.6rem .8rem;
margin:0;white-space:pre-wrap;overflow-wrap:anywhere;flex:1;min-width:0}
.copy{display:flex;gap:.5rem;align-items:flex-start;margin:.25rem 0 .75rem}
.go,.plain,.risk{font:inherit;font-weight:600;border-radius:8px;padding:.4rem .9rem;cursor:pointer;
border:1px solid var(--line);background:var(--card);color:var(--ink);white-space:nowrap}
.go{background:var(--go);border-color:var(--go);color:var(--card)}
.risk{color:var(--bad);border-color:var(--bad)}
.go:disabled,.plain:disabled,.risk:disabled{opacity:.5;cursor:default}
a.go,a.plain{text-decoration:none;display:inline-block}
.card>.go,.card>.plain{margin-top:.75rem}
.row{display:flex;flex-wrap:wrap;gap:.5rem .75rem;align-items:center}
.fields{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:.25rem 1.25rem}
.w-full,input[type=range]{width:100%}input[type=range]{accent-color:var(--go)}
.fields{align-items:start}.fields h3{grid-column:1/-1;margin:.25rem 0 0}
.fields .q-field{padding-bottom:2.5rem}.fields .wide{grid-column:span 2}
.q-field__bottom,.q-field__messages{line-height:1.35}
.slide{padding-top:.55rem}.slide .soft{line-height:1.2;margin-bottom:.35rem}
.q-checkbox{display:flex;flex-wrap:nowrap;gap:0;margin-left:-.5rem}
label.file{font-weight:600;display:block}
input[type=file]{font:inherit;max-width:100%;margin:.25rem 0 .75rem;color:var(--ink)}
.grid2:has(>.hidden)>.card:last-child{grid-column:1/-1}
.spread{margin-bottom:.75rem;display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;justify-content:space-between}
.q-table__card,.body--dark .q-table__card{background:none;color:inherit;box-shadow:none}
.q-table thead tr{height:auto}
.q-table th{color:var(--soft);font-size:.85rem;white-space:normal;vertical-align:bottom;
padding-top:.25rem;padding-bottom:.4rem}
.q-table tbody td.breaks{overflow-wrap:anywhere;min-width:9rem}
.q-table__container:has(.q-table__bottom--nodata) thead{display:none}
.q-table__bottom--nodata{font-size:.95rem;color:var(--soft);padding:.5rem 0;border:0;min-height:0}
.q-table tbody tr:last-child td{border-bottom:0}
.q-table th,.q-table td{padding-left:.5rem;padding-right:.5rem}
.q-table td a,.q-table td .tag{white-space:nowrap}
.q-table td,.q-table th{border-color:var(--line)}
.q-table tbody td{font-size:.95rem;white-space:normal;height:auto;padding-top:.4rem;
padding-bottom:.4rem}
.q-field__native,.q-field__input,.body--dark .q-field__native{color:var(--ink)}
.q-field__label,.q-field__bottom{color:var(--soft)}
.q-table__bottom-nodata-icon{display:none}
.q-card,.body--dark .q-card{background:var(--card);color:var(--ink)}
.nicegui-echart{height:17rem;width:100%}
.nicegui-echart svg text{fill:var(--soft);stroke:var(--card);stroke-width:3px;paint-order:stroke;
stroke-linejoin:round}
.bar{height:.6rem;border-radius:99px;background:var(--nonebg);overflow:hidden;width:100%}
.bar>div{height:100%;background:var(--go)}
@media(max-width:760px){
.grid2{grid-template-columns:minmax(0,1fr)}
.page{padding:.75rem .75rem 3rem}.top{padding:.5rem .75rem}.who{margin-left:0;width:100%;
justify-content:space-between}
.q-table thead{display:none}.q-table,.q-table tbody{display:block;width:100%}
.q-table tbody tr{display:block;padding:.5rem 0;
border-bottom:1px solid var(--line)}
.q-table tbody td{display:flex;justify-content:space-between;gap:1rem;border:0!important;
padding:.15rem 0!important;text-align:right!important;
overflow-wrap:anywhere}
.q-table tbody td.unknown{display:none}
.q-table tbody td.breaks{min-width:0}.q-table tbody td>*{min-width:0;text-align:left}
.q-table tbody td a{white-space:normal}
.q-table tbody td:before{content:attr(data-label);color:var(--soft);text-align:left;flex:0 0 auto;
max-width:45%;overflow-wrap:break-word;position:static;background:none}
.q-table tbody tr:last-child{border-bottom:0}
.who>.soft{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;min-width:0}
.who .q-field{min-width:9.5rem}
.top nav{gap:.25rem .6rem;font-size:.9rem}
.fields .wide{grid-column:auto}
.copy{flex-direction:column;align-items:stretch}
}
"""
