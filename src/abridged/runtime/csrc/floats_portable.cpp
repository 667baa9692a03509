#include "floats.hpp"

const abridged::FloatKernels abridged::portable_floats = {widen_all, linear_in_floats, dense};
