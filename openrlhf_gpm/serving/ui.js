"use strict";
(() => {
  // Texts reach the page as text nodes and values alone; a style by the CSS object model, as the policy demands.
  const element = (id) => document.getElementById(id);
  const ids = ["form", "prompt", "responses", "system", "key", "compare", "status", "error", "results", "warnings"];
  const [form, prompt, responses, system, key, compare, status, error, results, warnings] = ids.map(element);
  const percent = (rate) => (100 * rate).toFixed(1);
  const areas = () => [...responses.querySelectorAll("textarea")];

  function make(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function draw(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function add() {
    const text = make("textarea", { rows: 4, autocomplete: "off" });
    const remove = make("button", { type: "button", class: "remove" }, "Remove");
    const box = make("div", { class: "response" }, make("div", { class: "top" }, make("label", {}), remove), text);
    remove.addEventListener("click", () => {
      const next = box.nextElementSibling || box.previousElementSibling;
      box.remove();
      number();
      (next ? next.querySelector("textarea") : element("add")).focus();
    });
    responses.append(box);
    number();
    return text;
  }

  function number() {
    [...responses.children].forEach((box, i) => {
      const label = box.querySelector("label");
      label.textContent = `Response ${i + 1}`;
      label.htmlFor = box.querySelector("textarea").id = `response-${i + 1}`;
      box.querySelector("button").setAttribute("aria-label", `Remove response ${i + 1}`);
    });
  }

  function refuse(text, field = "") {
    const at = /responses\[(\d+)\]/.exec(field);
    if (at) areas()[Number(at[1])]?.setAttribute("aria-invalid", "true");
    error.textContent = text;
    error.hidden = false;
    results.hidden = true;
    status.textContent = "";
  }

  async function ask() {
    for (const area of areas()) area.removeAttribute("aria-invalid");
    error.hidden = true;
    status.textContent = "Comparing …";
    compare.disabled = true;
    const texts = areas().map((area) => area.value);
    const group = { prompt: prompt.value, responses: texts, ...(system.value && { system: system.value }) };
    try {
      const answer = await fetch("score", {
        method: "POST",
        headers: { "content-type": "application/json", ...(key.value && { authorization: `Bearer ${key.value}` }) },
        body: JSON.stringify({ groups: [group] }),
        credentials: "omit", // or the browser would ask for the key itself
        cache: "no-store",
      });
      const body = await answer.text();
      if (answer.ok) show(JSON.parse(body).results[0], texts);
      else refuse(...said(answer.status, body));
    } catch (failure) {
      refuse(`No answer: ${failure.message}`);
    } finally {
      compare.disabled = false;
    }
  }

  // What the server says of a refusal, and the field.
  function said(code, body) {
    try {
      const refusal = JSON.parse(body);
      return [`${code}: ${refusal.error}`, refusal.field];
    } catch {
      return [`${code}: ${body}`];
    }
  }

  function show(result, texts) {
    element("findings").replaceChildren(...findings(result).map((line) => make("li", {}, line)));
    const lines = result.warnings || [];
    warnings.replaceChildren(make("ul", {}, ...lines.map((line) => make("li", {}, line))));
    warnings.hidden = lines.length === 0;
    element("matrix").replaceChildren(matrix(result.probs));
    element("ranking").replaceChildren(ranking(result, texts));
    element("planes-section").hidden = result.embeddings === null;
    if (result.embeddings) element("planes").replaceChildren(...planes(result));
    results.hidden = false;
    status.textContent = texts.length === 1 ? "1 response read." : `${texts.length} responses compared.`;
    element("findings-title").focus();
  }

  function findings(result) {
    if (result.ranking.length === 1) return ["One response has nothing to be compared with: add another."];
    const [best] = result.ranking;
    const ties = result.mean_scores.filter((score) => score === result.mean_scores[best]).length;
    const rate = `a win rate of ${percent(result.win_rates[best])} %`;
    const first = ties > 1 ? `${ties} responses share the highest mean score` : `Response ${best + 1} has the highest mean score`;
    const order = result.ranking.filter((i) => result.von_neumann[i] >= 0.0005);
    const mixed = order.map((i) => `${percent(result.von_neumann[i])} % response ${i + 1}`).join(", ");
    const cyclic = `Cyclic share ${result.cyclic_share.toFixed(2)}: 0 is a ranking, 1 a pure cycle.`;
    return [`${first}, with ${rate}.`, `The mixture that no response beats: ${mixed}.`, cyclic];
  }

  // A table that scrolls sideways by itself, by keyboard too.
  function table(kind, label, caption, head, rows) {
    const top = make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)));
    const titled = caption ? [make("caption", {}, make("span", {}, caption))] : [];
    const whole = make("table", { class: kind }, ...titled, make("thead", {}, top), make("tbody", {}, ...rows));
    return make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label }, whole);
  }

  const row = (name, cells) => make("tr", {}, make("th", { scope: "row" }, name), ...cells);

  function shaded(rate, strength) {
    const cell = make("td", { class: rate >= 0.5 ? "win" : "lose" }, percent(rate));
    cell.style.setProperty("--by", strength.toFixed(3));
    return cell;
  }

  function matrix(probs) {
    const names = probs.map((_, i) => String(i + 1));
    const cell = (i) => (p, j) => (i === j ? make("td", {}, "–") : shaded(p, Math.abs(2 * p - 1)));
    const rows = probs.map((line, i) => row(names[i], line.map(cell(i))));
    const caption = "Probability that the response of the row beats that of the column, in %";
    return table("matrix", "Win matrix", caption, ["", ...names], rows);
  }

  function ranking(result, texts) {
    const rows = result.ranking.map((i) => {
      const share = make("td", { class: "win" }, percent(result.von_neumann[i]));
      share.style.setProperty("--by", result.von_neumann[i].toFixed(3));
      const [score, rate] = [result.mean_scores[i].toFixed(2), percent(result.win_rates[i])];
      const text = make("td", { class: "text" }, make("span", { class: "snippet" }, texts[i]));
      return row(String(i + 1), [make("td", {}, score), make("td", {}, rate), share, text]);
    });
    const head = ["", "mean score", "win rate, %", "share of the mixture, %", ""];
    return table("ranking", "Ranking and mixture", "", head, rows);
  }

  // One circle per plane: {a, b} of every response, the plane's gate, its weight.
  function planes(result) {
    const gate = result.gate || result.embeddings[0].slice(0, result.embeddings[0].length / 2).fill(1);
    const parts = gate.map((_, l) => result.embeddings.map((v) => ({ a: v[2 * l], b: v[2 * l + 1] })));
    const reach = Math.max(...parts.flat().map(({ a, b }) => Math.hypot(a, b))) || 1;
    const size = (part, l) =>
      part.reduce((sum, p) => sum + part.reduce((all, q) => all + Math.abs(p.a * q.b - p.b * q.a), 0), 0) * gate[l];
    const sizes = parts.map(size);
    const total = sizes.reduce((sum, each) => sum + each, 0);
    return parts.map((part, l) => {
      const weight = total > 0 ? `weight ${percent(sizes[l] / total)} %` : "weight 0 %";
      const said = result.gate ? `Plane ${l + 1}: gate ${gate[l].toFixed(2)}, ${weight}` : `Plane ${l + 1}: ${weight}`;
      const places = part.map(({ a, b }) => ({ x: (100 * a) / reach, y: (-100 * b) / reach }));
      return make("figure", {}, circle(places, said, result.von_neumann), make("figcaption", {}, said));
    });
  }

  // Angles that keep their order and lie at least `gap` apart, as close to the given ones as pushing neighbours gets.
  function spread(angles, gap) {
    const order = angles.map((_, i) => i).sort((i, j) => angles[i] - angles[j]);
    const found = [...angles];
    for (let pass = 0; pass < 100; pass += 1) {
      order.forEach((i, at) => {
        const j = order[(at + 1) % order.length];
        const between = found[j] - found[i] + (at + 1 === order.length ? 2 * Math.PI : 0);
        const push = i === j ? 0 : Math.max(0, gap - between) / 2;
        found[i] -= push;
        found[j] += push;
      });
    }
    return found;
  }

  function circle(places, said, mixture) {
    const shared = new Map(); // responses of one place have one point
    places.forEach(({ x, y }, i) => {
      const place = `${x.toFixed(1)} ${y.toFixed(1)}`;
      shared.set(place, [...(shared.get(place) || []), i]);
    });
    const groups = [...shared.values()];
    const angles = groups.map(([i]) => Math.atan2(places[i].y, places[i].x));
    const turned = spread(angles, Math.min(0.24, 5.5 / groups.length));
    const lines = [];
    const points = [];
    groups.forEach((members, at) => {
      const [x, y] = [places[members[0]].x.toFixed(1), places[members[0]].y.toFixed(1)];
      const on = (radius) => [Math.cos(turned[at]) * radius, Math.sin(turned[at]) * radius].map((each) => each.toFixed(1));
      const mixed = members.some((i) => mixture[i] >= 0.0005);
      const [labelX, labelY] = on(118);
      lines.push(draw("path", { class: "spoke", d: `M0 0L${x} ${y}` }));
      lines.push(draw("path", { class: "leader", d: `M${x} ${y}L${on(108).join(" ")}` }));
      points.push(draw("circle", { class: mixed ? "node mixed" : "node", cx: x, cy: y, r: 5 }));
      points.push(draw("text", { class: "label", x: labelX, y: labelY }, members.map((i) => i + 1).join(", ")));
    });
    const degrees = ({ x, y }) => Math.round((Math.atan2(-y, x) * 180) / Math.PI);
    const spoken = places.map((place, i) => `response ${i + 1} at ${degrees(place)} degrees`).join(", ");
    return draw(
      "svg",
      { viewBox: "-130 -130 260 260", role: "img", "aria-label": `${said}. ${spoken}` },
      draw("circle", { class: "rim", r: 100 }),
      draw("path", { class: "axis", d: "M-100 0H100M0 -100V100" }),
      ...lines,
      ...points,
    );
  }

  async function introduce() {
    const { model } = await (await fetch("health", { credentials: "omit" })).json();
    const gate = model.gate === "none" ? "no gate" : `gate ${model.gate}`;
    element("model").textContent =
      `${model.name} compares the responses to one prompt. Embeddings of size ${model.dim}, ${gate}, tau ${model.tau}, ` +
      `fingerprint ${model.fingerprint.slice(0, 12)}.`;
  }

  element("add").addEventListener("click", () => add().focus());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!compare.disabled) ask();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  add();
  add();
  introduce().catch((failure) => refuse(`No answer: ${failure.message}`));
})();
