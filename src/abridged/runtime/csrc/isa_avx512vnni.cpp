#include "linear.hpp"

const abridged::Kernels abridged::avx512vnni_kernels = {quantize, linear, attend};
