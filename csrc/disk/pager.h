#pragma once

// The thread that brings in the pages of disk blocks ahead of their use, and hands all pages back after idle time.

#include "disk/files.h"
#include "disk/trace.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

class llama_skip_disk_pager {
public:
    llama_skip_disk_pager(std::shared_ptr<llama_skip_disk_files> files, const llama_skip_disk & disk);
    ~llama_skip_disk_pager();

    const std::shared_ptr<llama_skip_disk_files> files;

    const bool strict;
    const bool at_once; // all blocks are brought in one after another: none of them will drive another out

    // Work begins; returns whether pages may be missing.
    bool begin();

    // It has ended; false: before its end, so that in strict mode blocks may be left in memory.
    void end(bool is_complete);

    // brings in the first `share` of a block, later
    void ask(int32_t il, double share);

    // a block has run: it is not asked for any more, and in strict mode its pages go
    void done(int32_t il);

    void standby();

private:
    using clock = std::chrono::steady_clock;

    struct request {
        int32_t il;
        double  share;
    };

    const std::chrono::duration<float> idle;

    std::mutex              mutex;
    std::condition_variable wake;
    std::condition_variable finished;
    std::deque<request>     requests;
    int32_t                 running   = -1; // the block that is brought in at this moment
    int32_t                 n_working = 0;
    bool                    stop      = false;
    bool                    is_cold   = true;
    int64_t                 n_faults  = -1;
    clock::time_point       last_work;
    bool                    is_idle = true; // all pages were handed back, or nothing was done yet
    std::thread             thread;

    void run();
    void forget(int32_t il); // what is asked of a block, -1: of all
    void drop(std::unique_lock<std::mutex> & lock, int32_t il);
};

// What a context does with the pages while it computes a graph: follows the scheduler from one disk block to the next,
// and passes the nodes on to the user's callback.
class llama_skip_disk_run {
public:
    using callback = bool (*)(ggml_tensor * t, bool ask, void * user_data);

    // n_file: blocks in the file, which a looped model runs several times; false: there is nothing to follow
    bool begin(llama_skip_disk_pager & pager, const llama_skip_disk_trace & trace, int32_t n_file, callback user,
        void * user_data);

    static bool eval(ggml_tensor * t, bool ask, void * user_data);

private:
    llama_skip_disk_pager * pager = nullptr;

    callback user      = nullptr;
    void *   user_data = nullptr;
    bool     user_asks = false;

    std::vector<int32_t>                  order;
    std::map<const ggml_tensor *, size_t> ends; // the last node of a block, by its place in `order`

    int32_t at(size_t i) const { return order[i % order.size()]; }

    void ended(size_t i);
};
