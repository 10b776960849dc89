"use strict";
// Language and theme of the page, and what its plays are built with.

const root = document.documentElement;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const memory = {
  // A browser may forbid a file to remember.
  get(key) { try { return localStorage.getItem(`leeml-${key}`); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(`leeml-${key}`, value); } catch { /* then it does not */ } },
};
const plays = {};  // by name: (stage, data) => what is drawn; play/*.js add themselves

function speak(language) {
  root.lang = language;
  const title = document.querySelector("title");
  document.title = language === "en" ? title.dataset.en : title.dataset.zh;
  dispatchEvent(new Event("look"));
}

function dark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function element(tag, options = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...inside);
  return made;
}

/** A text in both languages; the page shows one of them. */
function said(english, chinese) {
  const both = document.createDocumentFragment();
  both.append(element("span", { className: "en", lang: "en" }, english));
  both.append(element("span", { className: "zh", lang: "zh-Hant" }, chinese));
  return both;
}

/** A colour of page.css as canvas takes it. */
function colour(name) {
  const probe = element("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Where a play puts its controls, pictures and words. */
class Stage {
  constructor(box) {
    this.box = box;
    this.row();
  }

  /** Controls that follow stand in a new row. */
  row() {
    this.controls = element("div", { className: "controls" });
    this.box.append(this.controls);
  }

  button(english, chinese, press) {
    const made = element("button", { type: "button", onclick: press }, said(english, chinese));
    this.controls.append(made);
    return made;
  }

  /** A slider; `shown` writes its value. Calls `change(value)` when it moves; its `set(value)` does not. */
  slider(english, chinese, [min, max, step], value, change, shown = String) {
    const input = element("input", { type: "range", min, max, step, value });
    const output = element("output");
    input.set = (next) => { input.value = next; output.textContent = shown(Number(input.value)); };
    input.oninput = () => { output.textContent = shown(Number(input.value)); change(Number(input.value)); };
    input.set(value);
    this.controls.append(element("label", {}, element("span", {}, said(english, chinese)), input, output));
    return input;
  }

  /** Buttons of which one is pressed; options are [value, English, Chinese]. */
  choice(english, chinese, options, value, change) {
    const group = element("div", { className: "group", role: "group" }, element("span", {}, said(english, chinese)));
    const buttons = options.map(([own, inEnglish, inChinese]) => {
      const button = element("button", { type: "button" }, said(inEnglish, inChinese));
      button.setAttribute("aria-pressed", own === value);
      button.onclick = () => {
        for (const other of buttons) other.setAttribute("aria-pressed", other === button);
        change(own);
      };
      return button;
    });
    group.append(...buttons);
    this.controls.append(group);
  }

  /** A button that stays pressed or not; of a colour of page.css, if any. */
  toggle(english, chinese, on, change, ink) {
    const button = this.button(english, chinese, () => {
      on = !on;
      button.setAttribute("aria-pressed", on);
      change(on);
    });
    button.setAttribute("aria-pressed", on);
    if (ink) {
      button.style.setProperty("--colour", `var(--${ink})`);
      button.parentElement.classList.add("group");
    }
    return button;
  }

  /** A line of words that is read out when it changes. */
  words() {
    const made = element("p", {}, "");
    made.setAttribute("aria-live", "polite");
    made.say = (english, chinese) => made.replaceChildren(said(english, chinese));
    this.box.append(made);
    return made;
  }

  /**
   * A picture as wide as the play, drawn anew when size, theme or language change.
   * @param height (width) => pixels; @param draw (context, width, height); @param label [English, Chinese].
   * Its `redraw()` draws, `press = (x, y) => ...` hears clicks, `arrow = (dx, dy) => ...` the arrow keys and Enter (0, 0).
   */
  picture(height, draw, label) {
    const canvas = element("canvas", { tabIndex: 0 });
    this.box.append(canvas);
    const made = { canvas, press: null, arrow: null };
    made.redraw = () => {
      const width = canvas.clientWidth, tall = Math.round(height(width)), dense = devicePixelRatio || 1;
      if (!width) return;
      canvas.style.height = `${tall}px`;
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(tall * dense);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", root.lang === "en" ? label[0] : label[1]);
      const context = canvas.getContext("2d");
      context.scale(dense, dense);
      context.font = "13px system-ui, sans-serif";
      draw(context, width, tall);
    };
    canvas.onclick = (event) => made.press?.(event.offsetX, event.offsetY);
    canvas.onkeydown = (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0] }[event.key];
      if (way && made.arrow) {
        event.preventDefault();
        made.arrow(...way);
      }
    };
    let width = 0;
    new ResizeObserver(() => {
      if (canvas.clientWidth !== width) {
        width = canvas.clientWidth;
        made.redraw();
      }
    }).observe(canvas);
    addEventListener("look", made.redraw);
    return made;
  }
}

/** Calls step() every so many milliseconds until it says false; at once for those who want no motion. Returns a stop. */
function animate(step, pause) {
  if (still.matches) {
    while (step());
    return () => {};
  }
  let next = setTimeout(function frame() {
    next = step() ? setTimeout(frame, pause) : 0;
  }, pause);
  return () => clearTimeout(next);
}

addEventListener("DOMContentLoaded", () => {
  if (memory.get("theme")) root.dataset.theme = memory.get("theme");
  speak(memory.get("language") || (navigator.language.startsWith("zh") ? "zh-Hant" : "en"));
  document.getElementById("language").onclick = () => {
    const next = root.lang === "en" ? "zh-Hant" : "en";
    memory.set("language", next);
    speak(next);
  };
  document.getElementById("theme").onclick = () => {
    root.dataset.theme = dark() ? "light" : "dark";
    memory.set("theme", root.dataset.theme);
    dispatchEvent(new Event("look"));
  };
  document.getElementById("print").onclick = () => print();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("look")));
  for (const box of document.querySelectorAll(".play")) {
    plays[box.dataset.script](new Stage(box), JSON.parse(box.querySelector("script").textContent));
  }
});
