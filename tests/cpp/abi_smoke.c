/* A C program that knows nothing but the public header: it compiles, links and runs. */
#include <embstore/embstore.h>
#include <stdio.h>

int main(void) {
  printf("%s\n", es_version());
  return 0;
}
