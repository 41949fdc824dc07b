// out = epilogue(x W^T + bias) for weights packed in panels of 16 outputs (see
// ../../quantization.py).
//
// Quantized weights are multiplied as integers with rows that are quantized too, per group.
#include "linear_tiles_bfloat16.h"
#include "linear_tiles_integer.h"
#include "linear_vector.h"

#ifdef PG_AMX
namespace {
// Of each format: up to so many, vector instructions keep pace with the memory that weights come from.
// Tiles take as long for one row as for 16, and integers are unpacked for them.
constexpr int64_t FEW_ROWS[] = {1, 16, 8};
}  // namespace
#endif

// Rows of `inputs` bfloat16 (float32 for float32 weights) -> rows of 16 * panels (GEGLU: half as many) outputs.
extern "C" void paligemma_linear(int format, const void* values, const void* scales, int group,
                                 int panels, int k, const float* bias, int epilogue, const void* x,
                                 int64_t x_stride, int64_t rows, int inputs, void* out,
                                 int64_t out_stride, int out_is_float, int threads) {
    Linear l{format,   static_cast<const uint8_t*>(values), static_cast<const bf16*>(scales),
             group,    panels, k, bias, epilogue, out, out_stride, out_is_float};
    if (format == FLOAT32) {
        const Rows<float> in{static_cast<const float*>(x), x_stride, rows, inputs};
        multiply_rows<Float32Dots>(l, in, threads);
        return;
    }
    const Rows<bf16> in{static_cast<const bf16*>(x), x_stride, rows, inputs};
#ifdef PG_AMX
    if (rows > FEW_ROWS[format]) {
        if (format == BFLOAT16) multiply_by_tiles<Bfloat16Tiles>(l, in, threads);
        else if (format == INT8) multiply_by_tiles<IntegerTiles<Int8Steps>>(l, in, threads);
        else multiply_by_tiles<IntegerTiles<Int4Steps>>(l, in, threads);
        return;
    }
#endif
    if (format == BFLOAT16) multiply_rows<Bfloat16Dots>(l, in, threads);
    else if (format == INT8) multiply_rows<Int8Dots>(l, in, threads);
    else multiply_rows<Int4Dots>(l, in, threads);
}
