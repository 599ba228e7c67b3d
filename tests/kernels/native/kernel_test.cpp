// Every kernel table of this machine, without Python: for a machine that only cross-compiled programs reach, such
// as an emulated one.  One line per check; exits 1 if one fails.
#include "check.h"

int main() {
    for (const std::string& isa : fourfold::supported_isas()) {
        fourfold::use_isa(isa);
        fourfold::check_matrices();
        fourfold::check_bf16_inputs();
        fourfold::check_integer_inputs();
        fourfold::check_vectors();
    }
    std::printf("%d failed\n", fourfold::g_failures);
    return fourfold::g_failures != 0;
}
