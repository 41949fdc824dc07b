// Reads a .sbs file with gemma.cpp and writes what gemma.cpp makes of it: image tokens, and the
// decoder's weights after its own splits and transpositions. For test_gemma_cpp_program.py.
//
// Build, with gemma.cpp at 3ed403e and highway at the commit that its CMakeLists.txt names (a
// header that declares an empty SentencePieceProcessor is enough for sentencepiece):
//
//   F="-std=c++20 -O1 -DNDEBUG -march=haswell -maes -DHWY_COMPILE_ONLY_STATIC -I gemma.cpp -I highway"
//   g++ $F -c FILE for this file, gemma.cpp/{io,util}/*.cc (not io_win), gemma.cpp/compression/
//       compress.cc, gemma.cpp/gemma/{configs,tensor_info,tokenizer,kv_cache,model_store,weights,
//       vit}.cc, gemma.cpp/ops/matmul*.cc, gemma.cpp/paligemma/image.cc, highway/hwy/*.cc and
//       highway/hwy/contrib/{thread_pool,image}/*.cc
//   g++ -static -no-pie -Wl,--unresolved-symbols=ignore-all *.o -o gemma_cpp_dump
//
// Usage: gemma_cpp_dump MODEL.sbs IMAGE.ppm TOKENS WEIGHTS

#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include "gemma/activations.h"
#include "gemma/gemma.h"
#include "gemma/vit.h"
#include "util/mat.h"
#include "util/threading_context.h"

using namespace gcpp;

static float Value(const MatPtr& mat, const uint8_t* row, size_t column) {
  float value;
  uint32_t bits;
  if (mat.GetType() == Type::kF32) {
    memcpy(&value, row + 4 * column, 4);
    return value;
  }
  if (mat.GetType() == Type::kBF16) {
    uint16_t half;
    memcpy(&half, row + 2 * column, 2);
    bits = half;
  } else {
    HWY_ASSERT(mat.GetType() == Type::kSFP);
    const uint32_t byte = row[column], e = byte & 127;
    bits = e >= 64 ? ((0x38 + (e >> 4)) << 8) | ((e << 4) & 0xFF)
                   : ((0x34 + (e >> 3)) << 8) | ((e << 5) & 0xFF);
    bits = (e ? bits : 0) | ((byte & 128) << 8);
  }
  bits <<= 16;
  memcpy(&value, &bits, 4);
  return value;
}

static void Dump(FILE* file, const std::string& name, const MatPtr& mat) {
  fprintf(file, "%s %zu %zu\n", name.c_str(), size_t{mat.Rows()}, size_t{mat.Cols()});
  for (size_t r = 0; r < mat.Rows(); ++r) {
    const uint8_t* row = const_cast<MatPtr&>(mat).RowBytes(r);
    for (size_t c = 0; c < mat.Cols(); ++c) {
      const float value = Value(mat, row, c) * mat.Scale();
      fwrite(&value, sizeof(value), 1, file);
    }
  }
}

int main(int argc, char** argv) {
  if (argc != 5) return 1;
  LoaderArgs loader("", argv[1]);
  InferenceArgs inference;
  ThreadingArgs threading;
  threading.max_packages = threading.max_clusters = threading.max_lps = 1;
  ThreadingContext context(threading);
  MatMulEnv env(context);

  BlobReader reader(loader.weights);
  ModelStore model(reader, loader.tokenizer, loader.wrapping);
  const ModelConfig& config = model.Config();
  WeightsPtrs weights(config);
  std::vector<MatOwner> owners;
  weights.ReadFromBlobs(model, reader, loader, inference, owners, context);
  reader.CloseFile();

  ImageTokens tokens("image", Extents2D(config.vit_config.seq_len, config.model_dim),
                     context.allocator, MatPadding::kPacked);
  tokens.AllocateAndAttachRowPtrs(env.row_ptrs);
  Image image;
  if (!image.ReadPPM(std::string(argv[2]))) return 2;
  image.Resize(config.vit_config.image_size, config.vit_config.image_size);
  const ModelConfig vit = GetVitConfig(config);
  RuntimeConfig runtime = {.prefill_tbatch_size = vit.max_seq_len, .verbosity = 0};
  Activations activations(vit, vit.max_seq_len, vit.max_seq_len, context, env.row_ptrs);
  N_AVX2::PrefillVit(config, weights, runtime, image, tokens, activations, env);
  FILE* file = fopen(argv[3], "wb");
  for (size_t r = 0; r < tokens.Rows(); ++r) fwrite(tokens.Row(r), 4, tokens.Cols(), file);
  fclose(file);

  file = fopen(argv[4], "wb");
  Dump(file, "embedding", weights.embedder_input_embedding);
  Dump(file, "final_norm", weights.final_norm_scale);
  for (size_t i = 0; i < config.layer_configs.size(); ++i) {
    const LayerWeightsPtrs& layer = *weights.GetLayer(i);
    const std::string start = "blocks." + std::to_string(i) + ".";
    Dump(file, start + "attention.o_proj", layer.att_weights);
    Dump(file, start + "attention.q_proj", layer.qkv_einsum_w1);
    Dump(file, start + "key_value", layer.qkv_einsum_w2);
    Dump(file, start + "mlp.gate_proj", layer.gating_einsum_w1);
    Dump(file, start + "mlp.up_proj", layer.gating_einsum_w2);
    Dump(file, start + "mlp.down_proj", layer.linear_w);
    Dump(file, start + "pre_attention_norm", layer.pre_attention_norm_scale);
    Dump(file, start + "pre_mlp_norm", layer.pre_ffw_norm_scale);
    if (layer.post_attention_norm_scale.HasPtr()) {
      Dump(file, start + "post_attention_norm", layer.post_attention_norm_scale);
      Dump(file, start + "post_mlp_norm", layer.post_ffw_norm_scale);
    }
  }
  fclose(file);
  return 0;
}
