// Streams and events. Work stays in its stream's queue until somebody waits for it: a host that looks too early, or takes
// memory away too early, is wrong here every time, not now and then.

#include <algorithm>
#include <cstring>

#include "driver.h"

namespace driver {

namespace {

// Tells streams of threads apart; ids of the system come again.
uint64_t number_of_thread() {
    static uint64_t threads = 0;
    thread_local const uint64_t number = ++threads;
    return number;
}

bool has_work(const Stream& stream) { return stream.done < stream.queued; }

// Work that has not been done, of all streams.
template <class Visit> void for_all_work(Visit visit) {
    for (const auto& stream : all_streams()) {
        for (const Work& work : stream->queue) {
            visit(*stream, work);
        }
    }
}

void queue(Stream& stream, Work work) {
    stream.queue.push_back(std::move(work));
    stream.queued += 1;
}

// What is queued on `stream` next waits for what is queued on `other` now.
void wait_for(Stream& stream, const std::shared_ptr<Stream>& other, uint64_t position) {
    Work wait;
    wait.what = "a wait for another stream";
    wait.run = [other, position](Lock& lock) { drain(lock, *other, position); };
    queue(stream, std::move(wait));
}

// The legacy stream and the streams that are not `CU_STREAM_NON_BLOCKING` wait for each other.
void wait_for_legacy(const std::shared_ptr<Stream>& stream) {
    const auto& legacy = State::get().legacy;
    if (stream == legacy) {
        for (const auto& other : all_streams()) {
            if (other != legacy && other->blocking && has_work(*other)) {
                wait_for(*legacy, other, other->queued);
            }
        }
    } else if (stream->blocking && has_work(*legacy)) {
        wait_for(*stream, legacy, legacy->queued);
    }
}

// What can be said when work is queued: at once, or when a graph with it is launched.
void check_queued(Work& work) {
    State& state = State::get();
    for (const Range& range : work.device) {
        const auto after = state.device.upper_bound(range.start);
        if (after != state.device.begin() && std::prev(after)->second.free_queued) {
            found(work.what, "it uses memory that an earlier call has freed: " + describe(range.start));
        }
    }
    for (const Range& range : {work.source, work.target}) {
        if (range.bytes > 0 && !is_page_locked(range)) {
            found(work.what, "a graph copies from or to page-locked memory that has been freed");
            fail(CUDA_ERROR_INVALID_VALUE, "page-locked memory has been freed");
        }
    }
    bool written_by_device = false;
    for_all_work([&](const Stream&, const Work& other) { written_by_device |= other.target.overlaps(work.source); });
    if (work.source.bytes > 0 && !written_by_device) {
        const char* from = reinterpret_cast<const char*>(work.source.start);
        work.expected.assign(from, from + work.source.bytes);
    }
}

void execute(Lock& lock, Work& work) {
    for (const Range& range : work.device) {
        check_alive(range);
    }
    if (!work.expected.empty() &&
        std::memcmp(work.expected.data(), reinterpret_cast<const char*>(work.source.start), work.source.bytes) != 0) {
        found(work.what, "the host has written to the page-locked source before the copy ran");
    }
    work.run(lock);
}

// Runs the next work of a stream, which has some and runs none.
void step(Lock& lock, Stream& stream) {
    State& state = State::get();
    stream.running = true;
    Work& work = stream.queue.front(); // stays where it is when others are queued behind it
    try {
        if (state.failed == CUDA_SUCCESS) {
            execute(lock, work);
        }
    } catch (const Failure& failure) {
        report(work.what, failure);
        if (state.failed == CUDA_SUCCESS) {
            state.failed = failure.code;
        }
    }
    stream.queue.pop_front();
    stream.running = false;
    stream.done += 1;
    state.progress.notify_all();
}

// Time passes while somebody asks: one piece of work.
bool ask(Lock& lock, Stream& stream, uint64_t position) {
    if (stream.done < position && !stream.running) {
        step(lock, stream);
    }
    if (State::get().failed != CUDA_SUCCESS) {
        fail(State::get().failed, "");
    }
    return stream.done >= position;
}

// An event that can be asked or waited for; none if it was never recorded.
std::shared_ptr<Record> record_of(CUevent event) {
    const std::shared_ptr<Record> record = State::get().events.get(event, "event")->record;
    if (record && record->capture) {
        const std::string reason = "the event was last recorded in a capture: it can be waited for in that capture only";
        if (record->capture->active) {
            spoil(*record->capture, CUDA_ERROR_CAPTURED_EVENT, reason);
        }
        fail(CUDA_ERROR_CAPTURED_EVENT, reason);
    }
    return record;
}

} // namespace

std::shared_ptr<Stream> stream_of(CUstream handle) {
    State& state = State::get();
    if (handle == nullptr || handle == CU_STREAM_LEGACY) {
        for (const auto& capture : state.captures) {
            for (const auto& stream : capture->streams) {
                if (stream->blocking) {
                    spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                          "the legacy stream waits for a stream that is being captured");
                }
            }
        }
        return state.legacy;
    }
    if (handle == CU_STREAM_PER_THREAD) {
        auto& stream = state.per_thread[number_of_thread()];
        if (!stream) {
            stream = std::make_shared<Stream>();
        }
        return stream;
    }
    return state.streams.get(handle, "stream");
}

std::vector<std::shared_ptr<Stream>> all_streams() {
    State& state = State::get();
    std::vector<std::shared_ptr<Stream>> streams = {state.legacy};
    for (const auto& entry : state.per_thread) {
        streams.push_back(entry.second);
    }
    for (const auto& entry : state.streams.all()) {
        streams.push_back(entry.second);
    }
    streams.insert(streams.end(), state.retired.begin(), state.retired.end());
    return streams;
}

void push(const std::shared_ptr<Stream>& stream, Work work) {
    if (stream->capture) {
        add_node(*stream, std::move(work));
        return;
    }
    check_queued(work);
    wait_for_legacy(stream);
    queue(*stream, std::move(work));
}

void drain(Lock& lock, Stream& stream, uint64_t position) {
    State& state = State::get();
    while (stream.done < position) {
        if (stream.running) {
            state.progress.wait(lock);
        } else {
            step(lock, stream);
        }
    }
    if (state.failed != CUDA_SUCCESS) {
        fail(state.failed, "");
    }
}

void drain_all(Lock& lock) {
    for (const auto& stream : all_streams()) {
        drain(lock, *stream);
    }
    auto& retired = State::get().retired;
    retired.erase(std::remove_if(retired.begin(), retired.end(), [](const auto& stream) { return !has_work(*stream); }),
                  retired.end());
}

} // namespace driver

using namespace driver;

API int cuStreamCreate(CUstream* stream, unsigned flags) {
    return call(__func__, Needs::Context, [&](Lock&) {
        State& state = State::get();
        auto made = std::make_shared<Stream>();
        made->blocking = (flags & CU_STREAM_NON_BLOCKING) == 0;
        *stream = state.streams.add(std::move(made), state.next_handle);
    });
}

// Returns at once; what is queued is still done. A capture ends without a graph.
API int cuStreamDestroy_v2(CUstream handle) {
    return call(__func__, Needs::Device, [&](Lock&) {
        State& state = State::get();
        const auto stream = state.streams.get(handle, "stream");
        if (stream->capture) {
            end_capture(stream->capture);
        }
        state.streams.remove(handle, "stream");
        if (has_work(*stream)) {
            state.retired.push_back(stream);
        }
    });
}

API int cuStreamSynchronize(CUstream handle) {
    return call(__func__, Needs::Context, [&](Lock& lock) {
        const auto stream = stream_of(handle);
        if (stream->capture) {
            spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                  "nobody can wait for a stream that is being captured");
        }
        drain(lock, *stream);
        trim_pool(State::get().pool.threshold);
    });
}

API int cuStreamQuery(CUstream handle) {
    return call(__func__, Needs::Context, [&](Lock& lock) {
        const auto stream = stream_of(handle);
        refuse_in_captures("cuStreamQuery");
        if (stream->capture) {
            spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                  "nobody can ask for a stream that is being captured");
        }
        if (!ask(lock, *stream, stream->queued)) {
            fail(CUDA_ERROR_NOT_READY, "");
        }
    });
}

API int cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
    return call(__func__, Needs::Context, [&](Lock&) {
        const auto stream = stream_of(handle);
        const std::shared_ptr<Record> record = State::get().events.get(event, "event")->record;
        if (flags != 0) {
            fail(CUDA_ERROR_NOT_SUPPORTED, "the stand-in knows no waits with flags");
        }
        if (!record) {
            return;
        }
        const auto& capture = record->capture;
        if (!capture) {
            if (stream->capture) {
                spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                      "a stream that is being captured waits for an event that was recorded outside of the capture");
            }
            if (record->stream != stream && !record->reached()) {
                wait_for(*stream, record->stream, record->position);
            }
            return;
        }
        if (!capture->active) {
            const std::string reason = "the event was last recorded in a capture that has ended";
            if (stream->capture) {
                spoil(*stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION, reason);
            }
            fail(CUDA_ERROR_CAPTURED_EVENT, reason);
        }
        if (capture->invalid) {
            fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the event belongs to a capture that is invalid");
        }
        if (stream->capture == capture) {
            capture->unjoined.erase(record->stream.get());
        } else if (stream->capture) {
            stream->capture->invalid = true;
            spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_MERGE, "one capture waits for another");
        } else if (stream == State::get().legacy) {
            spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy stream cannot be captured");
        } else {
            stream->capture = capture;
            capture->streams.push_back(stream);
            capture->unjoined.insert(stream.get());
        }
    });
}

API int cuLaunchHostFunc(CUstream handle, CUhostFn function, void* argument) {
    return call(__func__, Needs::Context, [&](Lock&) {
        Work work;
        work.what = "a function of the host";
        work.run = [function, argument](Lock& lock) {
            lock.unlock();
            function(argument);
            lock.lock();
        };
        push(stream_of(handle), std::move(work));
    });
}

API int cuEventCreate(CUevent* event, unsigned flags) {
    return call(__func__, Needs::Context, [&](Lock&) {
        State& state = State::get();
        auto made = std::make_shared<Event>();
        made->timed = (flags & CU_EVENT_DISABLE_TIMING) == 0;
        *event = state.events.add(std::move(made), state.next_handle);
    });
}

API int cuEventDestroy_v2(CUevent event) {
    return call(__func__, Needs::Device, [&](Lock&) { State::get().events.remove(event, "event"); });
}

API int cuEventRecord(CUevent handle, CUstream stream_handle) {
    return call(__func__, Needs::Context, [&](Lock&) {
        const auto stream = stream_of(stream_handle);
        const auto event = State::get().events.get(handle, "event");
        auto record = std::make_shared<Record>();
        record->stream = stream;
        if (stream->capture) {
            if (stream->capture->invalid) {
                fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the stream's capture is invalid");
            }
            record->capture = stream->capture;
        } else {
            Work work;
            work.what = "the record of an event";
            work.run = [record](Lock&) { record->time = std::chrono::steady_clock::now(); };
            push(stream, std::move(work));
            record->position = stream->queued;
        }
        event->record = std::move(record);
    });
}

API int cuEventSynchronize(CUevent event) {
    return call(__func__, Needs::Device, [&](Lock& lock) {
        if (const auto record = record_of(event)) {
            drain(lock, *record->stream, record->position);
        }
    });
}

API int cuEventQuery(CUevent event) {
    return call(__func__, Needs::Device, [&](Lock& lock) {
        const auto record = record_of(event);
        refuse_in_captures("cuEventQuery");
        if (record && !ask(lock, *record->stream, record->position)) {
            fail(CUDA_ERROR_NOT_READY, "");
        }
    });
}

API int cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    return call(__func__, Needs::Device, [&](Lock&) {
        State& state = State::get();
        if (!state.events.get(start, "event")->timed || !state.events.get(end, "event")->timed) {
            fail(CUDA_ERROR_INVALID_HANDLE, "an event was made without timing");
        }
        const auto from = record_of(start);
        const auto to = record_of(end);
        if (!from || !to) {
            fail(CUDA_ERROR_INVALID_HANDLE, "an event was never recorded");
        }
        if (!from->reached() || !to->reached()) {
            fail(CUDA_ERROR_NOT_READY, "");
        }
        *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    });
}

API int cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime(milliseconds, start, end);
}
