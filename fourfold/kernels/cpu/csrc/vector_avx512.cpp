// AVX-512 F, BW, VL and DQ (2017 and later).
#include "vector_avx512.h"
#include "vector_table.h"

namespace fourfold {

const VectorKernels kAvx512Vectors = vector_table<Avx512>();

}  // namespace fourfold
