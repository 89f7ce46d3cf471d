// Runs one sample kernel under some seeds, for a build with a sanitizer: Python need not be loaded under one.
//
// Usage: program kernel n_blocks n n_seeds, with words that are 1 to read and 0 to write.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

extern "C" int emulator_launch(const char*, uint32_t, const void*, uint64_t, uint64_t, char*, uint64_t);

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const uint32_t n_blocks = static_cast<uint32_t>(atoi(argv[2]));
  int n_failed = 0;
  for (int seed = 0; seed < atoi(argv[4]); ++seed) {
    std::vector<uint64_t> in(8192, 1), out(8192, 0), more(8192, 0);
    const bool has_cells = argv[1][7] == 'c' || argv[1][7] == 'p' || argv[1][7] == 'l';  // claim, publish, lock
    const uint64_t args[3] = {reinterpret_cast<uint64_t>(has_cells ? more.data() : in.data()),
                              reinterpret_cast<uint64_t>(out.data()), static_cast<uint64_t>(atoll(argv[3]))};
    char error[4096];
    if (emulator_launch(argv[1], n_blocks, args, sizeof args, static_cast<uint64_t>(seed), error, sizeof error) != 0) {
      printf("%s\n", error);
      ++n_failed;
    }
  }
  return n_failed != 0;
}
