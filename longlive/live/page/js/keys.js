/** Single keys, outside of fields; the dialog that lists them can turn them off. */

const SETTING = "longlive-single-keys";

/** @param {Record<string, () => void>} actions - By key, as `KeyboardEvent.key` in lower case. */
export function listenForKeys(actions, dialog, checkbox) {
  checkbox.checked = localStorage.getItem(SETTING) !== "off";
  checkbox.addEventListener("change", () => {
    localStorage.setItem(SETTING, checkbox.checked ? "on" : "off");
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || dialog.open) return;
    const isEscape = event.key === "Escape";
    if (!isEscape && (!checkbox.checked || isTakenBy(event.target, event.key))) return;
    const act = actions[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function isTakenBy(target, pressed) {
  if (target.closest("textarea, select, input:not([type=radio], [type=checkbox])")) return true;
  return pressed === " " && Boolean(target.closest("button, a, input"));
}
