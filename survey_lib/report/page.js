"use strict";
// Filters lines by verdict, table, kind, devices and words; the state stands in the address after "#".
const form = document.querySelector("#filter");
const names = ["verdict", "table", "kind", "devices", "q"];
const lines = [...document.querySelectorAll(".line")].map((node) => {
  const row = node.closest("tbody"), table = node.closest("section");
  const near = [...row.querySelectorAll(".cells, .says")].map((n) => n.textContent);
  const text = [...near, node.textContent].join(" ").toLowerCase();
  return { node, text, table: table.id.slice(1), kind: row.dataset.kind, ...node.dataset };
});

function apply() {
  const wanted = Object.fromEntries(names.map((name) => [name, form.elements[name].value]));
  const words = wanted.q.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0, all = 0;
  for (const line of lines) {
    const same = names.slice(0, -1).every((k) => !wanted[k] || wanted[k] === line[k]);
    line.node.hidden = !(same && words.every((word) => line.text.includes(word)));
    if (line.node.matches("article")) {
      all += 1;
      shown += !line.node.hidden;
    }
  }
  for (const box of document.querySelectorAll("tbody[id], section.table")) {
    box.hidden = !box.querySelector(".line:not([hidden])");
  }
  form.querySelector("output").value = `${shown} of ${all} lines of evidence`;
}

function write() {
  const state = new URLSearchParams();
  for (const name of names) if (form.elements[name].value) state.set(name, form.elements[name].value);
  try {
    history.replaceState(null, "", `#${state}`);
  } catch { /* inside another page's frame there is no address of our own */ }
}

function read() {
  const hash = location.hash.slice(1);
  if (hash && !hash.includes("=")) { // a place on the page: show it if a filter hides it
    const target = document.getElementById(decodeURIComponent(hash));
    if (target && target.closest("[hidden]")) {
      form.reset();
      apply();
      target.scrollIntoView();
    }
    return;
  }
  const state = new URLSearchParams(hash);
  for (const name of names) {
    const field = form.elements[name];
    field.value = state.get(name) ?? "";
    if (field.selectedIndex === -1) field.value = ""; // no such choice
  }
  apply();
  if (hash) form.scrollIntoView();
}

form.hidden = false;
form.addEventListener("input", () => { apply(); write(); });
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => { apply(); write(); }));
addEventListener("hashchange", read);
read();
