// A picture enlarged to the canvas by bicubic interpolation (Catmull-Rom).

precision highp float;

uniform sampler2D picture;  // its first row is the upper one
uniform float side;         // of the canvas, pixels

out vec4 fragment;

// Weights of four neighbours, for a place `t` between the second and the third.
vec4 cubic(float t) {
    return 0.5 * vec4(
        ((2.0 - t) * t - 1.0) * t,
        (3.0 * t - 5.0) * t * t + 2.0,
        ((4.0 - 3.0 * t) * t + 1.0) * t,
        (t - 1.0) * t * t);
}

void main() {
    ivec2 last = textureSize(picture, 0) - 1;
    vec2 place = vec2(gl_FragCoord.x, side - gl_FragCoord.y) / side * vec2(last + 1) - 0.5;
    vec2 first = floor(place);
    vec4 across = cubic(place.x - first.x);
    vec4 down = cubic(place.y - first.y);
    vec3 color = vec3(0.0);
    for (int row = 0; row < 4; row++) {
        for (int column = 0; column < 4; column++) {
            ivec2 texel = clamp(ivec2(first) + ivec2(column, row) - 1, ivec2(0), last);
            color += across[column] * down[row] * texelFetch(picture, texel, 0).rgb;
        }
    }
    fragment = vec4(clamp(color, 0.0, 1.0), 1.0);
}
