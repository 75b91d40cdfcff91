/* Winograd's F(4x4, 3x3) and F(2x2, 5x5): a tile of 4x4 or 2x2 outputs from 6x6 inputs in 36 products a channel pair
 * instead of 144 or 100. Points 0, 1, -1, 2, -2, infinity. Included by cs_body.h, whose words it uses.
 */

/* t = B^T d */
INLINE void input_points(const vec d[6], vec t[6])
{
    const vec two = cs_splat(2.0f), four = cs_splat(4.0f), five = cs_splat(5.0f);
    const vec even = cs_fma(-four, d[2], d[4]), odd = cs_fma(-four, d[1], d[3]);
    const vec near = d[4] - d[2], far = two * (d[3] - d[1]);
    t[0] = cs_fma(four, d[0], cs_fma(-five, d[2], d[4]));
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = near + far;
    t[4] = near - far;
    t[5] = cs_fma(four, d[1], cs_fma(-five, d[3], d[5]));
}

/* o = A^T m */
INLINE void output_points(const vec m[6], vec o[4], const int tile)
{
    const vec sum = m[1] + m[2], difference = m[1] - m[2], sums = m[3] + m[4], differences = m[3] - m[4];
    o[0] = m[0] + sum + sums;
    o[1] = cs_fma(cs_splat(2.0f), differences, difference);
    if (tile == 2) {
        o[1] += m[5];
        return;
    }
    o[2] = cs_fma(cs_splat(4.0f), sums, sum);
    o[3] = cs_fma(cs_splat(8.0f), differences, difference) + m[5];
}

INLINE void input_tile(const float *const *in, float *out, int64_t pitch, int64_t c, int64_t left)
{
    vec across[6][6], d[6], t[6];
    for (int i = 0; i < 6; i++) {
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++)
            d[j] = left ? load_first(in[i * 6 + j] + c, left) : load(in[i * 6 + j] + c);
        input_points(d, across[i]);
    }
    for (int j = 0; j < 6; j++) {
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++)
            d[i] = across[i][j];
        input_points(d, t);
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++)
            if (left)
                store_first(out + (i * 6 + j) * pitch + c, t[i], left);
            else
                store(out + (i * 6 + j) * pitch + c, t[i]);
    }
}

static void winograd_input(int64_t channels, const float *const *in, float *out, int64_t pitch)
{
    int64_t c = 0;
    for (; c + CS_LANES <= channels; c += CS_LANES)
        input_tile(in, out, pitch, c, 0);
    if (c < channels)
        input_tile(in, out, pitch, c, channels - c);
}

INLINE void output_tile(const float *products, int64_t pitch, const float *bias, const float *const *residual,
                        float *const *out, int64_t channel, int64_t n, const int tile, int relu)
{
    for (int64_t c = 0; c < n; c += CS_LANES) {
        const int64_t left = n - c < CS_LANES ? n - c : CS_LANES;
        vec down[4][6], m[6], o[4];
        for (int j = 0; j < 6; j++) {
#pragma GCC unroll 6
            for (int i = 0; i < 6; i++)
                m[i] = load(products + (i * 6 + j) * pitch + c);
            output_points(m, o, tile);
#pragma GCC unroll 4
            for (int i = 0; i < tile; i++)
                down[i][j] = o[i];
        }
        const vec start = load(bias + c);
        for (int i = 0; i < tile; i++) {
            output_points(down[i], o, tile);
#pragma GCC unroll 4
            for (int j = 0; j < tile; j++) {
                float *place = out[i * tile + j];
                if (!place)
                    continue;
                vec v = o[j] + start;
                if (left == CS_LANES) {
                    if (residual)
                        v += load(residual[i * tile + j] + channel + c);
                    store(place + channel + c, activated(v, relu));
                } else {
                    if (residual)
                        v += load_first(residual[i * tile + j] + channel + c, left);
                    store_first(place + channel + c, activated(v, relu), left);
                }
            }
        }
    }
}

static void winograd_output(const float *products, int64_t pitch, const float *bias, const float *const *residual,
                            float *const *out, int64_t channel, int64_t n, int tile, int relu)
{
    if (tile == 4)
        output_tile(products, pitch, bias, residual, out, channel, n, 4, relu);
    else
        output_tile(products, pitch, bias, residual, out, channel, n, 2, relu);
}
