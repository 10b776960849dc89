// Learning rates by step: the formulas of callbacks/schedules.py, which says what they mean.
plays.schedules = (stage) => {
  const { formulas } = plays.schedules;
  const names = {
    constant: ["constant", "固定", "a"], linear: ["linear", "線性", "b"], cosine: ["cosine", "餘弦", "c"],
    inverse_sqrt: ["1 / √step", "1 / √步數", "d"], noam: ["Noam (at its own height)", "Noam（本身的高度）", "e"],
  };
  const now = { total: 1000, warmup: 100, floor: 0, d_model: 256, factor: 2, rate: 0.001 };
  const shown = new Set(["linear", "cosine", "inverse_sqrt"]);
  let step = 99;
  const rate = (name, at) => (name === "noam" ? 1 : now.rate) * formulas[name](at, now);

  for (const [name, [english, chinese, ink]] of Object.entries(names)) {
    stage.toggle(english, chinese, shown.has(name), (on) => {
      if (on) shown.add(name); else shown.delete(name);
      draw();
    }, ink);
  }
  stage.row();
  const slide = (key, english, chinese, range, shown) => stage.slider(english, chinese, range, now[key], (value) => {
    now[key] = value;
    draw();
  }, shown);
  slide("warmup", "warm-up steps", "warm-up 步數", [0, 1000, 10]);
  slide("total", "steps of the run", "總步數", [100, 2000, 50]);
  slide("floor", "end value, share of the peak", "結束時（占最高值的比例）", [0, 1, 0.05], (value) => value.toFixed(2));
  slide("d_model", "d_model (Noam)", "d_model（Noam）", [32, 1024, 32]);
  const stepSlider = stage.slider("look at step", "看第幾步", [0, 2000, 1], step, (value) => { step = value; draw(); });

  const left = 52, below = 26;
  const picture = stage.picture((width) => Math.min(300, width * 0.62), (context, width, height) => {
    const across = (at) => left + at / now.total * (width - left - 8);
    const curves = [...shown].map((name) => [name, Array.from({ length: 201 }, (_, i) => Math.round(i * now.total / 200))
      .map((at) => [at, rate(name, at)])]);
    const top = Math.max(1e-9, ...curves.flatMap(([, points]) => points.map(([, value]) => value))) * 1.08;
    const down = (value) => 8 + (1 - value / top) * (height - below - 8);
    context.fillStyle = colour("quiet");
    context.strokeStyle = colour("line");
    for (const share of [0, 0.5, 1]) {
      const value = share * top / 1.08;
      context.fillText(value.toPrecision(2), 2, down(value) + 4);
      context.strokeRect(left, down(value), width - left - 8, 0);
    }
    for (const share of [0, 0.5, 1]) {
      context.textAlign = share === 1 ? "right" : "center";
      context.fillText(String(Math.round(share * now.total)), across(share * now.total), height - 6);
    }
    context.textAlign = "left";
    for (const [name, points] of curves) {
      context.strokeStyle = colour(names[name][2]);
      context.lineWidth = 2.5;
      context.beginPath();
      for (const [at, value] of points) context.lineTo(across(at), down(value));
      context.stroke();
    }
    const at = Math.min(step, now.total);
    context.strokeStyle = colour("quiet");
    context.lineWidth = 1;
    context.strokeRect(across(at), 8, 0, height - below - 8);
    for (const name of shown) {
      context.fillStyle = colour(names[name][2]);
      context.beginPath();
      context.arc(across(at), down(rate(name, at)), 4.5, 0, 7);
      context.fill();
    }
  }, ["Learning rate by step; click to choose a step", "學習率隨步數的變化；點一下選擇步數"]);
  const look = (at) => {
    step = Math.max(0, Math.min(now.total, Math.round(at)));
    stepSlider.set(step);
    draw();
  };
  picture.press = (x) => look((x - left) / (picture.canvas.clientWidth - left - 8) * now.total);
  picture.arrow = (dx) => look(step + dx * Math.max(1, Math.round(now.total / 100)));
  const words = stage.words();
  function draw() {
    picture.redraw();
    const at = Math.min(step, now.total);
    const list = (language) => [...shown].map((name) => `${names[name][language]} ${rate(name, at).toPrecision(3)}`);
    words.say(`Rate after ${at} steps: ${list(0).join(", ") || "–"}`, `${at} 步之後的學習率：${list(1).join("、") || "–"}`);
  }
  draw();
};

/** By the names and arguments of callbacks/schedules.py: (steps done, {total, warmup, floor, d_model, factor}) => rate. */
plays.schedules.formulas = (() => {
  const ramp = (step, warmup) => Math.min(1, (step + 1) / Math.max(warmup, 1));
  const progress = (step, total, warmup) => {
    const peak = Math.max(warmup, 1);
    return Math.min(1, Math.max(0, step + 1 - peak) / Math.max(1, total - peak));
  };
  return {
    constant: (step, { warmup }) => ramp(step, warmup),
    linear: (step, { total, warmup, floor }) => ramp(step, warmup) * (floor + (1 - floor) * (1 - progress(step, total, warmup))),
    cosine: (step, { total, warmup, floor }) =>
      ramp(step, warmup) * (floor + (1 - floor) * 0.5 * (1 + Math.cos(Math.PI * progress(step, total, warmup)))),
    inverse_sqrt: (step, { warmup, floor }) => {
      const peak = Math.max(warmup, 1);
      return ramp(step, warmup) * Math.max(floor, Math.sqrt(peak / Math.max(step + 1, peak)));
    },
    noam: (step, { d_model, warmup, factor }) =>
      factor * d_model ** -0.5 * Math.min((step + 1) ** -0.5, (step + 1) * Math.max(warmup, 1) ** -1.5),
  };
})();
