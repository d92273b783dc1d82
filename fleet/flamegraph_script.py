"""What makes the drawing respond: style and script that travel inside of the file."""

STYLE = """
.frame rect { stroke: none; } .frame:hover rect { stroke: #222; stroke-width: 1; cursor: pointer; }
.frame text { pointer-events: none; fill: #111; } .button { cursor: pointer; fill: #06c; }
.hit rect { fill: #e32ff0 !important; } .away { display: none; } .faded { opacity: 0.5; }
"""

SCRIPT = """
'use strict';
const frames = [...document.querySelectorAll('.frame')].map(g => ({
  g, rect: g.querySelector('rect'), text: g.querySelector('text'),
  told: g.querySelector('title').textContent, name: g.querySelector('title').textContent.split(': ')[0],
  x: +g.dataset.x, w: +g.dataset.w, level: +g.dataset.l }));
const margin = 10, usable = 1180, letter = 6.6;
function place(frame, from, width, above) {
  const left = Math.max(0, (frame.x - from) / width), right = Math.min(1, (frame.x + frame.w - from) / width);
  const away = right - left <= 1e-7;
  frame.g.classList.toggle('away', away);
  frame.g.classList.toggle('faded', !away && above);
  if (away) return;
  const px = Math.max((right - left) * usable, 0.4), room = Math.floor((px - 4) / letter);
  frame.rect.setAttribute('x', margin + left * usable);
  frame.rect.setAttribute('width', px);
  frame.text.setAttribute('x', margin + left * usable + 3);
  const name = frame.name.replace(' (kernel)', '');
  frame.text.textContent = room < 3 ? '' : name.length <= room ? name : name.slice(0, room - 1) + '…';
}
function zoom(to) {
  for (const frame of frames) place(frame, to.x, to.w, frame.level < to.level);
}
function search() {
  const word = prompt('A part of a name, or a regular expression', '');
  if (word === null) return;
  let pattern;
  try { pattern = new RegExp(word); } catch { return; }
  const spans = [];
  for (const frame of frames) {
    const hit = word !== '' && pattern.test(frame.name);
    frame.g.classList.toggle('hit', hit);
    if (hit) spans.push([frame.x, frame.x + frame.w]);
  }
  spans.sort((a, b) => a[0] - b[0]);
  let share = 0, end = 0;
  for (const [a, b] of spans) if (b > end) { share += b - Math.max(a, end); end = b; }
  document.getElementById('found').textContent = word ? 'found: ' + (share * 100).toFixed(2) + ' %' : '';
}
for (const frame of frames) {
  frame.g.addEventListener('click', () => zoom(frame));
  frame.g.addEventListener('mouseover', () => { document.getElementById('told').textContent = frame.told; });
}
document.getElementById('reset').addEventListener('click', () => zoom(frames[0]));
document.getElementById('find').addEventListener('click', search);
addEventListener('keydown', event => {
  if ((event.ctrlKey || event.metaKey) && event.key === 'f') { event.preventDefault(); search(); }
  if (event.key === 'Escape') zoom(frames[0]);
});
"""
