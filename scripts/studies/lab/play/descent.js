// Ways down a surface from where one clicks: the rules of scripts/studies/{momentum,adaptive_rates}.py.
plays.descent = (stage, data) => {
  const surfaces = {
    plateau: {
      // The landscape of the study momentum along x, and a bowl along y.
      loss: (x, y) => Math.log1p(Math.exp(-6 * (x + 1))) / 3 - data.flat * x
        + data.hill * Math.exp(-(((x - 1) / 0.25) ** 2)) - 2 * Math.exp(-(((x - 3.5) / 0.8) ** 2)) + 0.5 * y * y,
      x: [-3, 5], y: [-2, 2], start: [-2.5, 1.2], rate: 0.02, lowest: [3.5, 0],
    },
    valley: {
      // The narrow valley of the study adaptive_rates.
      loss: (x, y) => 0.1 * x * x + 10 * y * y,
      x: [-3, 3], y: [-1.5, 1.5], start: [-2.5, 0.9], rate: 0.05, lowest: [0, 0],
    },
  };
  const rules = {
    descent: { en: "gradient descent", zh: "梯度下降", ink: "a", make: (rate) => (g) => -rate * g },
    momentum: {
      en: "momentum", zh: "動量", ink: "b",
      make: (rate, decay) => { let m = 0; return (g) => (m = decay * m - rate * g); },
    },
    adagrad: {
      en: "Adagrad", zh: "Adagrad", ink: "c",
      make: (rate) => { let s = 0; return (g) => { s += g * g; return -rate * g / (Math.sqrt(s) + 1e-10); }; },
    },
    rmsprop: {
      en: "RMSProp", zh: "RMSProp", ink: "d",
      make: (rate) => {
        let s = 0;
        return (g) => { s = 0.99 * s + 0.01 * g * g; return -rate * g / (Math.sqrt(s) + 1e-8); };
      },
    },
    adam: {
      en: "Adam", zh: "Adam", ink: "e",
      make: (rate) => {
        let m = 0, s = 0, t = 0;
        return (g) => {
          t += 1;
          m = 0.9 * m + 0.1 * g;
          s = 0.999 * s + 0.001 * g * g;
          return -rate * (m / (1 - 0.9 ** t)) / (Math.sqrt(s / (1 - 0.999 ** t)) + 1e-8);
        };
      },
    },
  };
  const steps = 300;
  const shown = new Set(data.rules);
  let name = data.surface, at = [...surfaces[name].start], rate = surfaces[name].rate, decay = 0.9;
  let paths = {}, done = 0, stop = () => {};

  const gradient = (loss, x, y) => {
    const h = 1e-5;
    return [(loss(x + h, y) - loss(x - h, y)) / (2 * h), (loss(x, y + h) - loss(x, y - h)) / (2 * h)];
  };

  function go() {
    stop();
    const { loss } = surfaces[name];
    paths = {};
    for (const key of Object.keys(rules)) {
      const [forX, forY] = [rules[key].make(rate, decay), rules[key].make(rate, decay)];
      let [x, y] = at;
      paths[key] = [[x, y]];
      for (let i = 0; i < steps && Math.hypot(x, y) < 1e3; i++) {
        const [gx, gy] = gradient(loss, x, y);
        [x, y] = [x + forX(gx), y + forY(gy)];
        paths[key].push([x, y]);
      }
    }
    done = 0;
    draw();
    stop = animate(() => {
      done = still.matches ? steps : Math.min(steps, done + 2);
      draw();
      return done < steps;
    }, 20);
  }

  function draw() {
    picture.redraw();
    const parts = [...shown].map((key) => {
      const [x, y] = paths[key][Math.min(done, paths[key].length - 1)];
      return [rules[key], surfaces[name].loss(x, y)];
    });
    const list = (language) => parts.map(([rule, loss]) => `${rule[language]} ${loss > 99 ? "> 99" : loss.toFixed(2)}`);
    words.say(
      `Click where the ways begin. After ${done} steps, loss: ${list("en").join(", ") || "–"}.`,
      `點一下選擇起點。${done} 步之後的損失：${list("zh").join("、") || "–"}。`,
    );
  }

  stage.choice("Surface:", "地形：", [["plateau", "plateau and hill", "平坦區與小丘"], ["valley", "narrow valley", "狹長的山谷"]], name, (next) => {
    name = next;
    at = [...surfaces[name].start];
    rate = surfaces[name].rate;
    rateSlider.set(Math.log10(rate));
    go();
  });
  stage.row();
  for (const [key, rule] of Object.entries(rules)) {
    stage.toggle(rule.en, rule.zh, shown.has(key), (on) => {
      if (on) shown.add(key); else shown.delete(key);
      draw();
    }, rule.ink);
  }
  stage.row();
  const rateSlider = stage.slider("learning rate η", "學習率 η", [-3, 0, 0.05], Math.log10(rate), (value) => {
    rate = 10 ** value;
    go();
  }, (value) => (10 ** value).toPrecision(2));
  stage.slider("momentum λ", "動量 λ", [0, 0.99, 0.01], decay, (value) => { decay = value; go(); }, (value) => value.toFixed(2));

  const scales = (width, height) => {
    const { x, y } = surfaces[name];
    return {
      across: (value) => (value - x[0]) / (x[1] - x[0]) * width, down: (value) => (y[1] - value) / (y[1] - y[0]) * height,
      x: (px) => x[0] + px / width * (x[1] - x[0]), y: (py) => y[1] - py / height * (y[1] - y[0]),
    };
  };
  const picture = stage.picture((width) => Math.min(340, width * 0.6), (context, width, height) => {
    const { loss } = surfaces[name], to = scales(width, height);
    let [low, high] = [Infinity, -Infinity];
    const cell = 4, values = [];
    for (let py = 0; py < height; py += cell) {
      for (let px = 0; px < width; px += cell) {
        const value = loss(to.x(px + cell / 2), to.y(py + cell / 2));
        values.push([px, py, value]);
        [low, high] = [Math.min(low, value), Math.max(high, value)];
      }
    }
    context.fillStyle = colour("ink");
    for (const [px, py, value] of values) {
      const level = Math.sqrt((value - low) / (high - low));  // finer bands where it is low
      context.globalAlpha = 0.04 + 0.5 * Math.floor(level * 14) / 14;
      context.fillRect(px, py, cell, cell);
    }
    context.globalAlpha = 1;
    for (const key of shown) {
      const way = paths[key]?.slice(0, done + 1) || [];
      context.strokeStyle = context.fillStyle = colour(rules[key].ink);
      context.lineWidth = 2.5;
      context.beginPath();
      for (const [px, py] of way) context.lineTo(to.across(px), to.down(py));
      context.stroke();
      if (way.length) {
        const [px, py] = way.at(-1);
        context.beginPath();
        context.arc(to.across(px), to.down(py), 5, 0, 7);
        context.fill();
      }
    }
    context.strokeStyle = colour("ink");
    context.lineWidth = 2;
    const [px, py] = [to.across(at[0]), to.down(at[1])];
    context.strokeRect(px - 5, py - 5, 10, 10);
    context.fillStyle = colour("ink");
    context.textAlign = "center";
    const [lowX, lowY] = surfaces[name].lowest;
    context.fillText(root.lang === "en" ? "lowest" : "最低點", to.across(lowX), to.down(lowY) + 22);
    context.fillText("×", to.across(lowX), to.down(lowY) + 4);
    context.fillText(root.lang === "en" ? "start" : "起點", Math.max(18, px), py > 24 ? py - 10 : py + 20);
  }, ["A surface seen from above; click where the ways begin", "從上方看的地形；點一下選擇起點"]);
  const start = (px, py) => {
    const { x, y } = surfaces[name];
    at = [Math.min(x[1], Math.max(x[0], px)), Math.min(y[1], Math.max(y[0], py))];
    go();
  };
  picture.press = (px, py) => {
    const to = scales(picture.canvas.clientWidth, picture.canvas.clientHeight);
    start(to.x(px), to.y(py));
  };
  picture.arrow = (dx, dy) => start(at[0] + 0.2 * dx, at[1] - 0.1 * dy);
  const words = stage.words();
  go();
};
