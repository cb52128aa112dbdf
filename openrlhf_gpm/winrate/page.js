"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const ids = ["search", "best", "subset", "first", "second", "count"];
  const [search, best, subset, first, second, count] = ids.map(element);
  const table = element("prompts");
  const heads = [...table.tHead.querySelectorAll("th")];
  const items = [...table.tBodies].map((body, number) => ({
    body,
    number,
    best: body.dataset.best,
    subset: body.dataset.subset,
    rates: body.dataset.rates.split(" ").map(Number),
    cyclic: Number(body.dataset.cyclic),
    rate: Number(body.dataset.rate),
    text: body.textContent.toLowerCase(),
    button: body.querySelector(".open"),
    detail: body.querySelector(".detail"),
    cell: body.querySelector(".of-pair"),
  }));
  const policies = first.options.length;
  const ofPair = (item) => item.rates[Number(first.value) * policies + Number(second.value)];
  const value = { number: (item) => item.number, rate: (item) => item.rate, pair: ofPair, cyclic: (item) => item.cyclic };
  let order = { key: "number", down: false };

  function filter() {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const item of items) {
      const chosen = (select, value) => select.value === "" || select.value === value;
      const fits = item.text.includes(wanted) && chosen(best, item.best) && chosen(subset, item.subset);
      item.body.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown === items.length ? `${shown} prompts` : `${shown} of ${items.length} prompts`;
  }

  function sort() {
    const of = value[order.key];
    const sign = order.down ? -1 : 1;
    items.sort((a, b) => sign * (of(a) - of(b)) || a.number - b.number);
    table.append(...items.map((item) => item.body));
    for (const head of heads) {
      const own = head.dataset.key === order.key;
      head.setAttribute("aria-sort", own ? (order.down ? "descending" : "ascending") : "none");
    }
  }

  function showPair() {
    for (const item of items) item.cell.textContent = (100 * ofPair(item)).toFixed(1);
    const name = (select) => select.options[select.selectedIndex].text;
    element("pair-head").textContent = `${name(first)} against ${name(second)}, %`;
    if (order.key === "pair") sort();
  }

  for (const item of items) {
    item.detail.hidden = true;
    item.button.setAttribute("aria-expanded", "false");
    item.button.addEventListener("click", () => {
      item.detail.hidden = !item.detail.hidden;
      item.button.setAttribute("aria-expanded", String(!item.detail.hidden));
    });
  }
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const key = head.dataset.key;
      order = { key, down: order.key === key ? !order.down : key !== "number" };
      sort();
    });
  }
  for (const link of document.querySelectorAll("a[data-first]")) {
    link.addEventListener("click", () => {
      first.value = link.dataset.first;
      second.value = link.dataset.second;
      order = { key: "pair", down: true };
      sort();
      showPair();
    });
  }
  search.addEventListener("input", filter);
  best.addEventListener("change", filter);
  subset.addEventListener("change", filter);
  subset.parentElement.hidden = subset.options.length === 1;
  first.addEventListener("change", showPair);
  second.addEventListener("change", showPair);
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  filter();
  sort();
  showPair();
})();
