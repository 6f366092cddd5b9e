"use strict";
// Draws one head's planes with WebGL 2 into pictures that lie in memory, a band of rows at a time,
// and shows them on the canvas.

const VERSION = "#version 300 es\n";

class Renderer {
  constructor(canvas, scene, sources) {
    this.canvas = canvas;
    this.scene = scene;
    this.gl =
        canvas.getContext("webgl2", {alpha: false, antialias: false, depth: false, stencil: false});
    if (!this.gl) throw new Error("This browser has no WebGL 2.");
    this.sources = sources;
    this.targets = new Map();
    this.secondsPerPixel = 2e-6;  // a guess, until something was drawn
    this.start();
  }

  // Everything that has to be made again when the browser took the graphics memory away.
  start() {
    const gl = this.gl;
    this.targets.clear();
    this.program = this.link(this.sources.vertex, this.header() + this.sources.fragment);
    this.enlarger = this.link(this.sources.vertex, VERSION + this.sources.enlarge);
    gl.useProgram(this.enlarger);
    gl.uniform1i(gl.getUniformLocation(this.enlarger, "picture"), 1);
    gl.useProgram(this.program);
    gl.bindVertexArray(gl.createVertexArray());
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.fillDecoder();
    const {rendering} = this.scene;
    const limit = (value) => (value === "auto" ? -1 : value);
    gl.uniform1i(this.at("planes"), 0);
    gl.uniform1f(this.at("box"), rendering.box);
    gl.uniform1f(this.at("unit"), rendering.unit);
    gl.uniform2f(this.at("limits"), limit(rendering.near), limit(rendering.far));
    gl.uniform3fv(this.at("background"), rendering.background ?? [0, 0, 0]);
    gl.uniform1f(this.at("hasBackground"), rendering.background ? 1 : 0);
  }

  header() {
    const {rendering, planes, decoder} = this.scene;
    const constants = {
      COARSE: rendering.coarse,
      FINE: rendering.fine,
      CHANNEL_TEXELS: planes.channels / 4,
      HIDDEN: decoder.hidden,
      RELEASED_AXES: Number(rendering.released_axes),
      RELEASED_SAMPLING: Number(rendering.released_sampling),
    };
    const lines = Object.entries(constants).map(([name, value]) => `#define ${name} ${value}\n`);
    return VERSION + lines.join("");
  }

  link(vertex, fragment) {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, source] of [
             [gl.VERTEX_SHADER, VERSION + vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
      gl.deleteShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost())
        throw new Error(gl.getShaderInfoLog(shader));
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost())
      throw new Error(gl.getProgramInfoLog(program));
    return program;
  }

  at(name) {
    return this.gl.getUniformLocation(this.program, name);
  }

  fillDecoder() {
    const gl = this.gl;
    gl.bindBuffer(gl.UNIFORM_BUFFER, gl.createBuffer());
    gl.bufferData(gl.UNIFORM_BUFFER, bytesFromBase64(this.scene.decoder.data), gl.STATIC_DRAW);
    gl.uniformBlockBinding(this.program, gl.getUniformBlockIndex(this.program, "Decoder"), 0);
    gl.bindBufferBase(gl.UNIFORM_BUFFER, 0, gl.getParameter(gl.UNIFORM_BUFFER_BINDING));
  }

  // Makes `head`, whose texels are given, the one that is drawn.
  setHead(head, texels) {
    const gl = this.gl;
    const {resolution, channels} = this.scene.planes;
    const side = resolution + 2;
    gl.deleteTexture(this.texture);
    this.texture = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, this.texture);
    gl.texImage3D(
        gl.TEXTURE_2D_ARRAY, 0, gl.RGBA8, side, side, (3 * channels) / 4, 0, gl.RGBA,
        gl.UNSIGNED_BYTE, texels);
    for (const axis of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T])
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, axis, gl.CLAMP_TO_EDGE);
    for (const way of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER])
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, way, gl.LINEAR);
    gl.uniform4fv(this.at("scale"), head.scale);
    gl.uniform4fv(this.at("offset"), head.offset);
    this.depths = head.depths;
  }

  // Memory for a picture. `name` distinguishes pictures that are needed at the same time.
  target(name, size) {
    const gl = this.gl;
    let target = this.targets.get(name);
    if (target?.size === size) return target;
    if (target) {
      gl.deleteFramebuffer(target.framebuffer);
      gl.deleteTexture(target.texture);
    }
    target = {size, framebuffer: gl.createFramebuffer(), texture: gl.createTexture()};
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, target.texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, size, size);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, target.texture, 0);
    gl.bindTexture(gl.TEXTURE_2D, null);  // the renderer must not read what it draws
    this.targets.set(name, target);
    return target;
  }

  // Draws rows first..first + count - 1 of a picture and waits for them, so that it is known how
  // long pixels take.
  drawRows(target, camera, view, first, count) {
    const gl = this.gl;
    const started = performance.now();
    const pivot = this.scene.cameras.pivot;
    const distance = norm(camera.origin.map((x, i) => x - pivot[i]));
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.framebuffer);
    gl.viewport(0, 0, target.size, target.size);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(0, first, target.size, count);
    gl.uniform3fv(this.at("origin"), camera.origin);
    gl.uniformMatrix3fv(this.at("rotation"), false, camera.columns.flat());
    gl.uniform4fv(this.at("pinhole"), camera.pinhole);
    gl.uniform1f(this.at("skew"), camera.skew);
    gl.uniform1f(this.at("pixels"), target.size);
    gl.uniform1i(this.at("view"), view === "depth" ? 1 : 0);
    gl.uniform2f(this.at("depths"), distance + this.depths[0], distance + this.depths[1]);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.disable(gl.SCISSOR_TEST);
    gl.readPixels(0, first, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    const taken = (performance.now() - started) / 1000 / (target.size * count);
    this.secondsPerPixel += 0.3 * (taken - this.secondsPerPixel);
  }

  // Rows of a picture of this size that can be drawn in the given time.
  rowsIn(seconds, size) {
    return Math.max(1, Math.min(size, Math.floor(seconds / (this.secondsPerPixel * size))));
  }

  // Copies a picture to the canvas, enlarged; its first row is the canvas' upper one.
  show(target) {
    const gl = this.gl;
    const {width, height} = this.canvas;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, width, height);
    gl.useProgram(this.enlarger);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, target.texture);
    gl.uniform1f(gl.getUniformLocation(this.enlarger, "side"), height);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.bindTexture(gl.TEXTURE_2D, null);
    gl.useProgram(this.program);
  }

  // The pixels of a picture, rows from its top, four bytes each.
  pixels(target) {
    const gl = this.gl;
    const bytes = new Uint8ClampedArray(target.size * target.size * 4);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.framebuffer);
    gl.readPixels(0, 0, target.size, target.size, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    return bytes;
  }
}
