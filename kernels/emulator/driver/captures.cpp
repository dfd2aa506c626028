// Captures of streams, and graphs.

#include <algorithm>

#include "driver.h"

namespace driver {

void spoil(Capture& capture, CUresult code, const std::string& reason) {
    capture.invalid = true;
    fail(code, reason + "; the capture is invalid now");
}

void refuse_in_captures(const char* function) {
    for (const auto& capture : State::get().captures) {
        const bool forbidden = capture->mode == CAPTURE_GLOBAL ||
                               (capture->mode == CAPTURE_THREAD_LOCAL && capture->thread == std::this_thread::get_id());
        if (forbidden && !capture->invalid) {
            spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                  std::string(function) + " is not allowed while a stream is captured, unless in relaxed mode");
        }
    }
}

void refuse_to_wait_for_captures() {
    const auto& captures = State::get().captures;
    if (captures.empty()) {
        return;
    }
    for (const auto& capture : captures) {
        capture->invalid = true;
    }
    fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
         "nobody can wait for the device while a stream is captured; the capture is invalid now");
}

void add_node(Stream& stream, Work work) {
    Capture& capture = *stream.capture;
    if (capture.invalid) {
        fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the stream's capture is invalid");
    }
    capture.nodes.push_back(std::move(work));
    if (&stream != capture.origin.get()) {
        capture.unjoined.insert(&stream);
    }
}

void end_capture(const std::shared_ptr<Capture>& capture) {
    const std::shared_ptr<Capture> kept = capture; // the caller's may be that of a stream
    auto& captures = State::get().captures;
    captures.erase(std::find(captures.begin(), captures.end(), kept));
    for (const auto& stream : kept->streams) {
        stream->capture.reset();
    }
    kept->active = false;
    kept->streams.clear();
    kept->origin.reset();
}

} // namespace driver

using namespace driver;

API int cuStreamBeginCapture_v2(CUstream handle, int mode) {
    return call(__func__, Needs::Context, [&](Lock&) {
        const auto stream = stream_of(handle);
        if (stream == State::get().legacy) {
            fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured");
        }
        if (stream->capture) {
            fail(CUDA_ERROR_ILLEGAL_STATE, "the stream is being captured already");
        }
        if (mode < CAPTURE_GLOBAL || mode > CAPTURE_RELAXED) {
            fail(CUDA_ERROR_INVALID_VALUE, "there is no such mode");
        }
        auto capture = std::make_shared<Capture>();
        capture->origin = stream;
        capture->mode = static_cast<CUstreamCaptureMode>(mode);
        capture->thread = std::this_thread::get_id();
        capture->streams = {stream};
        stream->capture = capture;
        State::get().captures.push_back(std::move(capture));
    });
}

API int cuStreamEndCapture(CUstream handle, CUgraph* graph) {
    return call(__func__, Needs::Context, [&](Lock&) {
        State& state = State::get();
        *graph = nullptr;
        const auto stream = handle == nullptr || handle == CU_STREAM_LEGACY ? state.legacy : stream_of(handle);
        const auto capture = stream->capture;
        if (!capture) {
            fail(CUDA_ERROR_ILLEGAL_STATE, "the stream is not being captured");
        }
        if (capture->mode != CAPTURE_RELAXED && capture->thread != std::this_thread::get_id()) {
            fail(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "another thread began the capture, and not in relaxed mode");
        }
        if (capture->origin != stream) {
            spoil(*capture, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture began on another stream");
        }
        end_capture(capture);
        if (capture->invalid) {
            fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier call made the capture invalid");
        }
        if (!capture->unjoined.empty()) {
            fail(CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
                 "another stream has captured work that this one does not wait for");
        }
        *graph = state.graphs.add(capture, state.next_handle);
    });
}

API int cuStreamIsCapturing(CUstream handle, int* status) {
    return call(__func__, Needs::Context, [&](Lock&) {
        const auto stream = stream_of(handle);
        *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    });
}

API int cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, uint64_t) {
    return call(__func__, Needs::Context, [&](Lock&) {
        State& state = State::get();
        *executable = state.executables.add(state.graphs.get(graph, "graph"), state.next_handle);
    });
}

API int cuGraphUpload(CUgraphExec executable, CUstream handle) {
    return call(__func__, Needs::Context, [&](Lock&) {
        stream_of(handle);
        State::get().executables.get(executable, "executable graph");
    });
}

API int cuGraphLaunch(CUgraphExec executable, CUstream handle) {
    return call(__func__, Needs::Context, [&](Lock&) {
        const auto graph = State::get().executables.get(executable, "executable graph");
        const auto stream = stream_of(handle);
        for (const Work& node : graph->nodes) {
            push(stream, node);
        }
    });
}

API int cuGraphDestroy(CUgraph graph) {
    return call(__func__, Needs::Device, [&](Lock&) { State::get().graphs.remove(graph, "graph"); });
}

// Launches that are under way go on.
API int cuGraphExecDestroy(CUgraphExec executable) {
    return call(__func__, Needs::Device,
                [&](Lock&) { State::get().executables.remove(executable, "executable graph"); });
}
