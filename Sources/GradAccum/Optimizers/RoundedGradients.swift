import CShims

/// Sums in bfloat16 on their way into an update, which reads float32: as many elements at a time as there is room for.
struct RoundedGradients {
    /// Per parameter, nil for nothing.
    let sums: [LeafGradient?]
    /// Per parameter, a power of two that its sum is multiplied by.
    let factors: [Float]
    /// Room for elements in float32, as many as ``room(for:)`` says.
    let workspace: Tensor

    /// Elements of rules that treat each alone: so few that they stay in the cache, and enough to share out.
    private static let cacheableCount = 1 << 19

    /// The elements of the workspace: those of the largest parameter for a rule that needs whole ones.
    static func room(for optimizer: Optimizer) -> Int {
        let sizes = optimizer.parameters.map(\.elementCount)
        let whole = optimizer.rule is any ElementwiseRule ? 0 : sizes.max() ?? 0
        return max(whole, min(cacheableCount, sizes.reduce(0, +)))
    }

    /// Some elements of a parameter.
    private struct Segment {
        let parameter: Update.Parameter
        let start: Int
        let count: Int
    }

    /// Runs `body` for parts of an update one after another, with gradients in float32.
    func forEachPart(
        of update: Update, isElementwise: Bool, _ body: (Update) throws(GAError) -> Void
    ) throws(GAError) {
        var segments: [Segment] = []
        var used = 0
        for parameter in update.parameters {
            var start = 0
            while start < parameter.count {
                let rest = parameter.count - start
                let room = workspace.elementCount - used
                if room == 0 || (!isElementwise && rest > room) {
                    try body(try load(segments, update))
                    (segments, used) = ([], 0)
                    continue
                }
                let segment = Segment(parameter: parameter, start: start, count: min(rest, room))
                segments.append(segment)
                used += segment.count
                start += segment.count
            }
        }
        if !segments.isEmpty { try body(try load(segments, update)) }
    }

    /// The update of some segments, which come to lie one after another in the workspace.
    private func load(_ segments: [Segment], _ update: Update) throws(GAError) -> Update {
        var addresses: [UnsafeMutablePointer<Float>] = []
        var next = workspace.floats
        for segment in segments {
            addresses.append(next)
            next += segment.count
        }
        try Pieces(segments.map(\.count)).forEach { number, start, count in
            let (segment, out) = (segments[number], addresses[number] + start)
            let index = segment.parameter.index
            sums[index]!.load(into: out, from: segment.start + start, count: count)
            if factors[index] != 1 {
                Runtime.kernels.add_scaled(out, out, SHIMS_F32, factors[index], Int64(count), 0)
            }
        }
        return update.of(
            zip(segments, addresses).map { segment, address in
                let (whole, start) = (segment.parameter, segment.start)
                return Update.Parameter(
                    index: whole.index, shape: segment.count == whole.count ? whole.shape : [segment.count],
                    count: segment.count, values: whole.values + start, gradient: UnsafePointer(address),
                    // Those of a rule that treats every element alone are float32.
                    slots: start == 0 ? whole.slots : whole.slots.map { $0 + start * MemoryLayout<Float>.size })
            })
    }
}
