"""Operations for processors: products by oneDNN, attention, and kernels in C++."""
