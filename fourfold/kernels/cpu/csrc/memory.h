// How this process gets its memory.
#pragma once

#include <cstddef>
#include <vector>

namespace fourfold {

// Freed results of large operations stay with the process, at most 256 MiB at the end of its heap: getting them
// anew from the system for each operation of a prompt costs a page fault for every 4 KiB.  What the user has set
// for the allocator in the environment stays as it is.
void keep_freed_memory();

// The pages of this memory, not yet written, alternate between these memory nodes.  False: the system refuses.
bool interleave(std::size_t address, std::size_t size, const std::vector<int>& nodes);

}  // namespace fourfold
