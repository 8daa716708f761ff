#include "disk/pager.h"

#include "disk/pages.h"

#include <algorithm>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/resource.h>

// pages of this process that had to be read
static int64_t n_major_faults() {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_majflt : -1;
}
#else
static int64_t n_major_faults() {
    return 0;
}
#endif

// in strict mode two blocks never are in memory as a whole
static constexpr double strict_share = 0.75;

llama_skip_disk_pager::llama_skip_disk_pager(std::shared_ptr<llama_skip_disk_files> files, const llama_skip_disk & disk)
    : files(std::move(files)), strict(disk.strict),
      at_once(!disk.strict && disk.n_bytes <= llama_skip_physical_memory() / 2), idle(disk.idle) {}

llama_skip_disk_pager::~llama_skip_disk_pager() {
    {
        std::lock_guard<std::mutex> lock(mutex);
        stop = true;
    }
    wake.notify_one();
    if (thread.joinable()) {
        thread.join();
    }
}

bool llama_skip_disk_pager::begin() {
    std::lock_guard<std::mutex> lock(mutex);
    const int64_t               n_now = n_major_faults();

    ++n_working;
    if (!thread.joinable()) { // a model that only tells its sizes needs none
        try {
            thread = std::thread([this] { run(); });
        } catch (const std::system_error &) {
            return false; // pages come in as they are used
        }
    }
    const bool missing = strict || is_cold || n_now != n_faults;
    n_faults           = n_now;
    requests.clear();
    is_cold   = false;
    last_work = clock::now();
    is_idle   = false;
    return missing;
}

void llama_skip_disk_pager::end(bool is_complete) {
    {
        std::unique_lock<std::mutex> lock(mutex);
        --n_working;
        last_work = clock::now();
        if (strict && !is_complete) {
            drop(lock, -1);
            files->release_all();
        }
    }
    wake.notify_one(); // to wait for the end of the idle time
}

void llama_skip_disk_pager::ask(int32_t il, double share) {
    {
        std::lock_guard<std::mutex> lock(mutex);
        requests.push_back({ il, share });
        last_work = clock::now();
    }
    wake.notify_one();
}

void llama_skip_disk_pager::forget(int32_t il) {
    requests.erase(
        std::remove_if(requests.begin(), requests.end(), [il](const request & r) { return il < 0 || r.il == il; }),
        requests.end());
}

// waits for what is being done, too
void llama_skip_disk_pager::drop(std::unique_lock<std::mutex> & lock, int32_t il) {
    forget(il);
    finished.wait(lock, [&] { return il < 0 ? running < 0 : running != il; });
}

void llama_skip_disk_pager::done(int32_t il) {
    std::unique_lock<std::mutex> lock(mutex);
    if (strict) {
        drop(lock, il);
        files->release(il);
    } else {
        forget(il);
    }
}

void llama_skip_disk_pager::standby() {
    std::unique_lock<std::mutex> lock(mutex);
    drop(lock, -1);
    files->standby();
    is_cold = true;
    is_idle = n_working == 0; // what is at work brings pages back, which go after the idle time
}

void llama_skip_disk_pager::run() {
    std::unique_lock<std::mutex> lock(mutex);
    while (!stop) {
        if (!requests.empty()) {
            const request r = requests.front();
            requests.pop_front();
            running = r.il;
            lock.unlock();
            files->populate(r.il, r.share);
            lock.lock();
            running = -1;
            finished.notify_all();
        } else if (is_idle || n_working > 0 || idle.count() <= 0.0f) {
            wake.wait(lock);
        } else if (clock::now() - last_work >= idle) {
            files->standby();
            is_cold = true;
            is_idle = true;
        } else {
            wake.wait_until(lock, last_work + std::chrono::duration_cast<clock::duration>(idle));
        }
    }
}

//
// llama_skip_disk_run
//

bool llama_skip_disk_run::begin(llama_skip_disk_pager & p, const llama_skip_disk_trace & trace, int32_t n_file,
    callback user_cb, void * user_cb_data) {
    pager     = &p;
    user      = user_cb;
    user_data = user_cb_data;
    if (!pager->begin() || trace.output.empty()) {
        return false;
    }
    order.clear();
    ends.clear();
    for (const auto & [il, t] : trace.output) {
        ends[t] = order.size();
        order.push_back(il % n_file);
    }
    if (pager->at_once) {
        for (size_t i = 0; i < order.size(); ++i) {
            pager->ask(at(i), 1.0);
        }
        return false;
    }
    pager->ask(at(0), 1.0);
    pager->ask(at(1), pager->strict ? strict_share : 1.0);
    return true;
}

void llama_skip_disk_run::ended(size_t i) {
    pager->done(at(i));
    if (pager->strict) {
        pager->ask(at(i + 1), 1.0);
    }
    pager->ask(at(i + 2), pager->strict ? strict_share : 1.0);
}

bool llama_skip_disk_run::eval(ggml_tensor * t, bool ask, void * data) {
    auto &     self = *static_cast<llama_skip_disk_run *>(data);
    const auto end  = self.ends.find(t);
    if (ask) {
        self.user_asks = self.user != nullptr && self.user(t, true, self.user_data);
        return self.user_asks || end != self.ends.end();
    }
    const bool go_on = !self.user_asks || self.user(t, false, self.user_data);
    if (end != self.ends.end()) {
        self.ended(end->second);
    }
    return go_on;
}
