// One ray per pixel through the tri-planes, in two passes as in training/rendering: even samples,
// then samples where those found density, composited together in the order of depth. Lengths are
// world units.
//
// The program that compiles this puts in front: the version line, and COARSE, FINE (samples of
// either pass), CHANNEL_TEXELS (vectors of four that a feature has), HIDDEN (units of the decoder),
// RELEASED_AXES and RELEASED_SAMPLING (0 or 1).

precision highp float;
precision highp int;
precision highp sampler2DArray;

const int UNIT = CHANNEL_TEXELS + 2;    // vectors of a hidden unit: weights in, weights out, bias
const float STOP = 2e-5;                // a ray ends at less transmittance
const float WEIGHT_FLOOR = 0.01;
const float CDF_EPSILON = 1e-5;
const float DENSITY_SHIFT = 1.0;
const float FARTHEST_GREY = 0.15;       // so that the far end differs from the background's black
const float OPAQUE = 0.5;               // pixels with less alpha have no depth worth showing

uniform sampler2DArray planes;          // (code / 255) of four channels per texel; zeros around
uniform vec4 scale[3 * CHANNEL_TEXELS];
uniform vec4 offset[CHANNEL_TEXELS];
layout(std140) uniform Decoder { vec4 decoder[HIDDEN * UNIT + 1]; };

uniform float box;                      // side of the cube that the planes span
uniform float unit;                     // world length of the unit in which densities count
uniform vec2 limits;                    // near and far; negative: where the ray meets the cube
uniform vec3 background;
uniform float hasBackground;

uniform vec3 origin;
uniform mat3 rotation;                  // camera to world
uniform vec4 pinhole;                   // fx, fy, cx, cy in picture sizes
uniform float skew;
uniform float pixels;                   // a side of the picture
uniform int view;                       // 0 colour, 1 depth
uniform vec2 depths;                    // shown as white and as darkest grey

out vec4 fragment;

float softplus(float x) {
    return x > 20.0 ? x : log(1.0 + exp(x));
}

vec4 texel(vec2 q, int layer) {
    vec2 inside = vec2(textureSize(planes, 0).xy) - 2.0;
    vec3 place = vec3(((q * 0.5 + 0.5) * inside + 1.0) / (inside + 2.0), float(layer));
    // texture() asks for derivatives, which loops of different lengths do not have
    return textureLod(planes, place, 0.0);
}

// Raw density and colour at a point of the world.
vec4 decode(vec3 point) {
    vec3 q = point * (2.0 / box);
    vec2 third = RELEASED_AXES == 1 ? q.zx : q.zy;
    vec4 feature[CHANNEL_TEXELS];
    for (int i = 0; i < CHANNEL_TEXELS; i++) {
        feature[i] = offset[i] + texel(q.xy, i) * scale[i]
            + texel(q.xz, CHANNEL_TEXELS + i) * scale[CHANNEL_TEXELS + i]
            + texel(third, 2 * CHANNEL_TEXELS + i) * scale[2 * CHANNEL_TEXELS + i];
    }
    vec4 result = decoder[HIDDEN * UNIT];
    for (int unit = 0; unit < HIDDEN; unit++) {
        int first = unit * UNIT;
        float x = decoder[first + CHANNEL_TEXELS + 1].x;
        for (int i = 0; i < CHANNEL_TEXELS; i++) {
            x += dot(decoder[first + i], feature[i]);
        }
        result += softplus(x) * decoder[first + CHANNEL_TEXELS];
    }
    return vec4(result.x, 1.002 / (1.0 + exp(-result.yzw)) - 0.001);
}

// Depths between which the ray is sampled. False where it meets nothing.
bool rayLimits(vec3 direction, out float near, out float far) {
    near = limits.x;
    far = limits.y;
    if (near >= 0.0 && far >= 0.0) {
        return true;
    }
    vec3 safe = mix(direction, vec3(1e-20), equal(direction, vec3(0.0)));
    vec3 one = (-0.5 * box - origin) / safe;
    vec3 other = (0.5 * box - origin) / safe;
    vec3 entries = min(one, other);
    vec3 exits = max(one, other);
    float enter = max(max(max(entries.x, entries.y), entries.z), 0.0);
    float leave = min(min(exits.x, exits.y), exits.z);
    bool hit = leave > enter;
    near = near < 0.0 ? enter : near;
    far = far < 0.0 ? leave : far;
    return hit && far > near;
}

float alphaOf(float density, float length) {
    return 1.0 - exp(-softplus(density - DENSITY_SHIFT) * length / unit);
}

#if FINE > 0

// Of the intervals between coarse samples; zeros before the first and after the last.
float weights[COARSE + 1];

// The bins that fine samples are drawn from: where each begins, and which interval's weight it has.
#if RELEASED_SAMPLING == 1
const int BINS = COARSE - 3;
float binStart(float near, float stepLength, int bin) {
    return near + (float(bin) + 1.0) * stepLength;
}
int binInterval(int bin) { return bin + 1; }
#else
const int BINS = COARSE - 1;
float binStart(float near, float stepLength, int bin) {
    return near + (float(bin) + 0.5) * stepLength;
}
int binInterval(int bin) { return bin; }
#endif

float binWeight(int bin) {
    int i = binInterval(bin) + 1;
    float before = max(weights[i - 1], weights[i]);
    float behind = max(weights[i], weights[i + 1]);
    return (before + behind) * 0.5 + WEIGHT_FLOOR + CDF_EPSILON;
}

#endif

// What has been composited so far, and the last sample.
struct Ray {
    vec3 color;
    float depth;
    float alpha;
    float transmittance;
    float lastDepth;
    vec4 last;
};

void addSample(inout Ray ray, float depth, vec4 value) {
    float weight = ray.transmittance * alphaOf(0.5 * (ray.last.x + value.x), depth - ray.lastDepth);
    ray.color += weight * 0.5 * (ray.last.yzw + value.yzw);
    ray.depth += weight * 0.5 * (ray.lastDepth + depth);
    ray.alpha += weight;
    ray.transmittance -= weight;
    ray.lastDepth = depth;
    ray.last = value;
}

Ray march(vec3 direction, float near, float stepLength) {
    float first = near + 0.5 * stepLength;
    vec4 coarse[COARSE];
    coarse[0] = decode(origin + first * direction);
    Ray ray = Ray(vec3(0.0), 0.0, 0.0, 1.0, first, coarse[0]);
    int known = 1;                      // coarse samples in front of where it gets dark
    int taken = 1;                      // of these, the ones composited
#if FINE > 0
    for (int i = 0; i <= COARSE; i++) {
        weights[i] = 0.0;
    }
    for (float transmittance = 1.0; known < COARSE && transmittance > STOP; known++) {
        coarse[known] = decode(origin + (first + float(known) * stepLength) * direction);
        float alpha = alphaOf(0.5 * (coarse[known - 1].x + coarse[known].x), stepLength);
        weights[known] = transmittance * alpha;
        transmittance *= 1.0 - alpha;
    }
    float total = 0.0;
    for (int bin = 0; bin < BINS; bin++) {
        total += binWeight(bin);
    }
    int bin = 0;
    float below = 0.0;                  // share of the weights in the bins before this one
    float share = binWeight(0) / total;
    for (int i = 0; i < FINE; i++) {
        float u = (float(i) + 0.5) / float(FINE);
        while (u >= below + share && bin < BINS - 1) {
            below += share;
            share = binWeight(++bin) / total;
        }
        float width = share < CDF_EPSILON ? 1.0 : share;
        float depth = binStart(near, stepLength, bin) + (u - below) / width * stepLength;
        for (; taken < known && first + float(taken) * stepLength <= depth; taken++) {
            addSample(ray, first + float(taken) * stepLength, coarse[taken]);
        }
        if (ray.transmittance < STOP) {
            return ray;
        }
        addSample(ray, depth, decode(origin + depth * direction));
    }
#else
    for (; known < COARSE && ray.transmittance > STOP; known++, taken++) {
        float depth = first + float(known) * stepLength;
        addSample(ray, depth, decode(origin + depth * direction));
    }
#endif
    for (; taken < known; taken++) {
        addSample(ray, first + float(taken) * stepLength, coarse[taken]);
    }
    return ray;
}

void main() {
    vec2 uv = gl_FragCoord.xy / pixels; // pixel centres; rows run from the picture's top
    float x = (uv.x - pinhole.z + (pinhole.w - uv.y) * skew / pinhole.y) / pinhole.x;
    vec3 direction = normalize(rotation * vec3(x, (uv.y - pinhole.w) / pinhole.y, 1.0));
    float near;
    float far;
    vec3 color = vec3(0.0);
    float depth = 0.0;
    float alpha = 0.0;
    if (rayLimits(direction, near, far)) {
        Ray ray = march(direction, near, (far - near) / float(COARSE - 1));
        color = ray.color;
        alpha = ray.alpha;
        depth = ray.depth / max(alpha, 1e-20);
    }
    if (view == 1) {
        float closeness = clamp((depths.y - depth) / (depths.y - depths.x), 0.0, 1.0);
        float grey = FARTHEST_GREY + (1.0 - FARTHEST_GREY) * closeness * closeness;
        color = vec3(alpha > OPAQUE ? grey : 0.0);
    } else {
        color += hasBackground * (1.0 - alpha) * background;
    }
    fragment = vec4(color, 1.0);
}
