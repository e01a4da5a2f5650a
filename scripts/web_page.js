// The keys of the page. They press its buttons and move its sliders.
() => {
  const find = selector => document.querySelector(selector);
  const press = id => find(`#${id}`)?.click();

  const setNumber = (id, change) => {
    const range = find(`#${id} input[type=range]`);
    if (!range || range.disabled) return;
    const before = range.value;
    range.value = change(+before, +range.max);  // the browser keeps the value between its bounds
    if (range.value !== before) range.dispatchEvent(new Event('input', {bubbles: true}));
  };

  // The editor counts as drawn on only after a stroke. Before, it may still be loading its layer, and look empty.
  const strokeToUndo = () => {
    const undo = find('#editor button[aria-label="Undo"]');
    return undo && !undo.disabled ? undo : null;
  };
  let painted = false;
  document.addEventListener('pointerdown', event => {
    if (event.target.closest('#editor canvas')) painted = true;
  }, true);
  window.drawn = editor => painted && strokeToUndo() ? editor : null;
  window.shown = frame => {
    painted = false;
    return frame;
  };

  // Propagations and adaptations are numbered when their buttons are pressed, and "Stop" names the last of them: the
  // server may hear of the stop before it begins what is to be stopped.
  window.run = 0;
  document.addEventListener('click', event => {
    if (event.target.closest('#forward, #backward, #both, #adapt')) window.run += 1;
  }, true);

  // Undo the last stroke that is not kept yet or, if there is none, the last change of the masks.
  const undo = () => {
    const stroke = strokeToUndo();
    if (painted && stroke) stroke.click();
    else press('undo');
  };

  const keys = {
    'ArrowLeft': () => setNumber('frame', frame => frame - 1),
    'ArrowRight': () => setNumber('frame', frame => frame + 1),
    'Home': () => setNumber('frame', () => 0),
    'End': () => setNumber('frame', (frame, last) => last),
    'shift+ArrowLeft': () => press('backward'),
    'shift+ArrowRight': () => press('forward'),
    'b': () => press('both'),
    'u': () => find('#to_painted input').click(),
    's': () => press('stop'),
    'z': undo,
    'ctrl+z': undo,
    '[': () => setNumber('brush', radius => radius - 1),
    ']': () => setNumber('brush', radius => radius + 1),
    'd': () => find('#editor button[aria-label="Brush"]')?.click(),
    'e': () => find('#editor button[aria-label="Erase"]')?.click(),
    'n': () => press('next_object'),
    'a': () => press('add_object'),
    'k': () => press('keep'),
    'f': () => press('forget'),
    'm': () => press('masks'),
  };

  document.addEventListener('keydown', event => {
    if (!event.isTrusted || event.altKey) return;
    const typing = event.target.closest('input:not([type=radio], [type=checkbox], [type=range]), textarea');
    if (typing) {
      if (['Enter', 'Escape'].includes(event.key)) setTimeout(() => typing.blur());
      return;
    }
    const control = event.ctrlKey || event.metaKey ? 'ctrl+' : '', arrow = event.key.startsWith('Arrow');
    const key = control + (event.shiftKey && arrow ? 'shift+' : '') + event.key;
    if (!(key in keys)) return;
    event.preventDefault();
    keys[key]();
  }, true);
}
