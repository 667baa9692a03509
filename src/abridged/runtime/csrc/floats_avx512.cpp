#include "floats.hpp"

const abridged::FloatKernels abridged::avx512_floats = {widen_all, linear_in_floats, dense};
