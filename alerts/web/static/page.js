// Keys and the select-all box of the list; the page works without it.
"use strict";
(() => {
  const rows = () => [...document.querySelectorAll("tr.row a.open")];
  const typing = (node) => /^(INPUT|SELECT|TEXTAREA)$/.test(node.tagName) && node.type !== "checkbox";
  const prepare = () => {
    const all = document.getElementById("all");
    if (all) all.hidden = false;
  };
  document.querySelectorAll(".keys").forEach((node) => { node.hidden = false; });
  prepare();
  document.addEventListener("htmx:afterSwap", prepare);
  document.addEventListener("change", (event) => {
    if (event.target.id !== "all") return;
    document.querySelectorAll('tr.row input[name="alert"]').forEach((box) => { box.checked = event.target.checked; });
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const links = rows();
    const row = document.activeElement.closest("tr.row");
    const at = row ? links.indexOf(row.querySelector("a.open")) : -1;
    if (event.key === "j" && at + 1 < links.length) links[at + 1].focus();
    else if (event.key === "k" && at > 0) links[at - 1].focus();
    else if (event.key === "x" && row) {
      const box = row.querySelector('input[name="alert"]');
      if (box) box.checked = !box.checked;
    } else return;
    event.preventDefault();
  });
})();
