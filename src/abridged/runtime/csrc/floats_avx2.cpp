#include "floats.hpp"

const abridged::FloatKernels abridged::avx2_floats = {widen_all, linear_in_floats, dense};
