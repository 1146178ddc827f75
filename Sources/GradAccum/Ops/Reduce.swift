import CShims

extension Tensor {
    /// The sum over `axes`, or over all of them; the axes are dropped unless `keepAxes`.
    public func sum(_ axes: [Int]? = nil, keepAxes: Bool = false) throws(GAError) -> Tensor {
        try reduced(axes, keepAxes: keepAxes, isMean: false, "sum")
    }

    /// The mean over `axes`, or over all of them; the axes are dropped unless `keepAxes`.
    public func mean(_ axes: [Int]? = nil, keepAxes: Bool = false) throws(GAError) -> Tensor {
        try reduced(axes, keepAxes: keepAxes, isMean: true, "mean")
    }

    private func reduced(
        _ axes: [Int]?, keepAxes: Bool, isMean: Bool, _ name: StaticString
    ) throws(GAError) -> Tensor {
        guard dtype == .float32 else {
            return try inFloat32(name, "x").reduced(axes, keepAxes: keepAxes, isMean: isMean, name)
        }
        var kept = shape
        var isReduced = [Bool](repeating: axes == nil, count: rank)
        for axis in axes ?? [] {
            let axis = try Shape.axis(axis, rank: rank, name, "one of axes")
            guard !isReduced[axis] else {
                throw GAError(.invalidArgument, "\(name): axes names axis \(axis) twice")
            }
            isReduced[axis] = true
        }
        for axis in 0..<rank where isReduced[axis] { kept[axis] = 1 }
        let (shape, layout) = (shape, layout.packed)
        let outShape = keepAxes ? kept : shape.indices.filter { !isReduced[$0] }.map { shape[$0] }
        let out = try Tensor(uninitialized: outShape, for: name)
        let x = try packedData()
        let divisor = Float(out.elementCount == 0 ? 1 : elementCount / out.elementCount)
        try GradAccum.sum(x.floats, shape, into: out.floats, shapedLike: kept, bySample: false, 0)
        if isMean {
            try elementwise(out.elementCount) { start, count in
                var step = divisor
                Runtime.kernels.binary(
                    SHIMS_DIVIDE, out.floats + start, out.floats + start, 1, &step, 0, Int64(count))
            }
        }
        return out.recorded(name, from: [self], reading: [], isMean: isMean && (rank == 0 || isReduced[0])) {
            dy, gradients throws(GAError) in
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                let runs = Runs(layout, try Layout(packed: kept, name), layout)
                let scale = isMean ? divisor : 1
                try runs.forEach { position, from, _, count in
                    var scale = scale
                    if accumulate == 0 {
                        Runtime.kernels.binary(
                            SHIMS_DIVIDE, dx + position, dy.floats + from, Int64(runs.innerA), &scale, 0, Int64(count))
                    } else {
                        addRun(dx + position, dy.floats + from, runs.innerA, dividedBy: scale, count)
                    }
                }
            }
        }
    }
}

/// out[i] += x[i * step] / divisor
private func addRun(
    _ out: UnsafeMutablePointer<Float>, _ x: UnsafeMutablePointer<Float>, _ step: Int, dividedBy divisor: Float,
    _ count: Int
) {
    var divisor = divisor
    withUnsafeTemporaryAllocation(of: Float.self, capacity: 256) { scratch in
        for start in Swift.stride(from: 0, to: count, by: 256) {
            let size = Int64(min(256, count - start))
            Runtime.kernels.binary(
                SHIMS_DIVIDE, scratch.baseAddress!, x + start * step, Int64(step), &divisor, 0, size)
            Runtime.kernels.add_scaled(out + start, scratch.baseAddress!, SHIMS_F32, 1, size, 1)
        }
    }
}

/// out (+)= x summed to a shape that broadcasts to x's, both contiguous.
///
/// Inner axes are summed first and the leading one last, as a chain that loads `out` first: a parameter that is repeated
/// over samples receives them one after another. `bySample`: that stage is there for a single sample too, so that a
/// leaf's chain does not depend on how many there are.
func sum(
    _ x: UnsafeMutablePointer<Float>, _ shape: [Int], into out: UnsafeMutablePointer<Float>, shapedLike target: [Int],
    bySample: Bool, _ accumulate: Int32
) throws(GAError) {
    guard !target.contains(0) else { return }
    let missing = shape.count - target.count
    let isSummed = shape.indices.map { axis in
        axis < missing || (target[axis - missing] == 1 && (shape[axis] != 1 || (bySample && axis == 0)))
    }
    var current = shape
    var source = x
    var keepAlive: Tensor?
    var axis = shape.count - 1
    var stages: [(outer: Int, count: Int, inner: Int, isLeading: Bool)] = []
    while axis >= 0 {
        guard isSummed[axis] else {
            axis -= 1
            continue
        }
        var first = axis
        // The leading axis is the sample axis: it is never joined with others.
        while first > 1 && isSummed[first - 1] { first -= 1 }
        let count = current[first...axis].reduce(1, *)
        let inner = current[(axis + 1)...].reduce(1, *)
        stages.append((current[..<first].reduce(1, *), count, inner, first == 0))
        for joined in first...axis { current[joined] = 1 }
        axis = first - 1
    }
    guard let last = stages.indices.last else {
        let count = shape.reduce(1, *)
        try elementwise(count) { start, count in
            Runtime.kernels.add_scaled(out + start, x + start, SHIMS_F32, 1, Int64(count), accumulate)
        }
        return
    }
    for (index, stage) in stages.enumerated() {
        let isLast = index == last
        let temporary = isLast ? nil : try Tensor(uninitialized: [stage.outer, stage.inner], for: "sum")
        try sumMiddle(
            source, stage.outer, stage.count, stage.inner, byChain: stage.isLeading, into: temporary?.floats ?? out,
            isLast ? accumulate : 0)
        keepAlive = temporary
        source = temporary?.floats ?? out
    }
    withExtendedLifetime(keepAlive) {}
}

/// out [outer, inner] (+)= x [outer, count, inner] summed over its middle axis: one chain per element that loads `out`
/// first, or else a fixed order of its own where the summed numbers are neighbours.
private func sumMiddle(
    _ x: UnsafeMutablePointer<Float>, _ outer: Int, _ count: Int, _ inner: Int, byChain: Bool,
    into out: UnsafeMutablePointer<Float>, _ accumulate: Int32
) throws(GAError) {
    if inner == 1 && !byChain {
        try elementwiseRows(outer) { row in
            var sum = Runtime.kernels.sum(x + row * count, Int64(count))
            Runtime.kernels.add_scaled(out + row, &sum, SHIMS_F32, 1, 1, accumulate)
        }
        return
    }
    let columns = Blocks.balanced(inner, largest: 1024, times: outer, threads: Runtime.numThreads)
    try Runtime.parallel(tiles: outer * columns.count) { tile in
        let row = tile / columns.count
        let start = columns.start(tile % columns.count)
        Runtime.kernels.sum_rows(
            out + row * inner + start, x + row * count * inner + start, Int64(count),
            Int64(columns.count(tile % columns.count)), Int64(inner), accumulate)
    }
}
