import CShims

/// Where a window first was not finite.
///
/// In isolated mode each micro-batch is looked at before it is added. In exact mode, where that would be another pass over
/// memory, it is looked for under a loss scale, in what is added, and after a skip, in all sums at each commit.
extension Accumulator {
    /// Where the window first held a NaN or an infinity, of what is in the update.
    var firstNonFinite: WindowReport.NonFinite? {
        guard let found = window.firstNonFinite else { return nil }
        // A parameter that was frozen since is not.
        return found.parameter.map { optimizer.parameters[$0].requiresGrad } ?? true ? found : nil
    }

    /// The same, as far as it is known after the window: not the micro-batch of a sum that only got beyond float32 by adding up.
    func whereNonFinite() throws(GAError) -> WindowReport.NonFinite {
        // What a dropped micro-batch held is not in the sums.
        if !options.isIsolated, let found = firstNonFinite { return found }
        let parameter = norms(of: try foldWindow()).firstIndex { !Float($0).isFinite }
        let isOnlyOne = window.microBatches == 1 && window.aborted == 0
        return WindowReport.NonFinite(parameter: parameter, microBatch: parameter != nil && isOnlyOne ? 0 : nil)
    }

    private var microBatchNumber: Int { window.microBatch?.number ?? window.nextNumber }

    private var isAfterSkip: Bool { consecutiveSkips > 0 }

    private var isLookedFor: Bool {
        let found = window.firstNonFinite
        return !options.isIsolated && (found == nil || found?.microBatch == microBatchNumber)
    }

    /// Whether to look at what is added; after a skip the sums show more.
    private var looksAtAdditions: Bool { lossScaler != nil && !isAfterSkip && isLookedFor }

    /// Notes the first of some parameters whose gradient in the micro-batch `number`, or nil if that is not certain, is not finite.
    private func noteNonFinite(_ parameters: [Int], in number: Int?) {
        guard var parameter = parameters.first(where: { optimizer.parameters[$0].requiresGrad }) else { return }
        // Of gradients that come one after another, that of the last parameter may be the first to come.
        if let before = firstNonFinite?.parameter, before < parameter { parameter = before }
        window.firstNonFinite = WindowReport.NonFinite(parameter: parameter, microBatch: number)
    }

    // MARK: Given gradients

    /// Runs `add` for pieces of given gradients, one per parameter, and looks at these while they are in the cache: it adds
    /// `count` elements from `start` on times `factor`, and returns their address.
    func addGiven(
        _ pieces: Pieces, _ dtype: DType, times factor: Float, firstParameter: Int = 0,
        _ add: (_ array: Int, _ start: Int, _ count: Int) -> UnsafeRawPointer
    ) throws(GAError) {
        window.hasGiven = true
        guard looksAtAdditions else { return try pieces.forEach { _ = add($0, $1, $2) } }
        try look(pieces, dtype, times: factor, firstParameter: firstParameter, add)
    }

    /// Looks at one that is added elsewhere.
    func noteNonFinite(
        _ gradient: UnsafeRawPointer, ofParameter index: Int, _ dtype: DType, times factor: Float
    ) throws(GAError) {
        window.hasGiven = true
        guard looksAtAdditions else { return }
        let pieces = Pieces([optimizer.parameters[index].elementCount])
        try look(pieces, dtype, times: factor, firstParameter: index) { _, start, _ in
            gradient + start * dtype.byteCount
        }
    }

    /// Looks at pieces of gradients where `address` says that they are.
    private func look(
        _ pieces: Pieces, _ dtype: DType, times factor: Float, firstParameter: Int,
        _ address: (_ array: Int, _ start: Int, _ count: Int) -> UnsafeRawPointer
    ) throws(GAError) {
        let found = try pieces.sums { array, range in
            let gradient = address(array, range.lowerBound, range.count)
            let largest = Runtime.kernels.largest_magnitude(gradient, dtype.format, Int64(range.count))
            return SIMD2((factor * largest).isFinite ? 0 : 1, 0)
        }
        noteNonFinite(found.indices.filter { found[$0].x > 0 }.map { firstParameter + $0 }, in: microBatchNumber)
    }

    // MARK: Gradients of a backward pass

    /// Looks at what is added to few rows of a leaf, whose sum is large beside it.
    func look(at values: Tensor, for leaf: Tensor) {
        guard looksAtAdditions else { return }
        let largest = Runtime.kernels.largest_magnitude(values.floats, SHIMS_F32, Int64(values.elementCount))
        if !largest.isFinite { noteNonFinite([leaf.indexInOwner], in: microBatchNumber) }
    }

    /// Looks at the sums that a micro-batch has added to as a whole, and after a skip at all.
    func noteNonFiniteSums() throws(GAError) {
        guard isLookedFor, isAfterSkip || lossScaler != nil else { return }
        let isRead = sums.map { isAfterSkip ? $0.isUsed : $0.hasNewSums }
        guard isRead.contains(true) else { return }
        for (sum, isRead) in zip(sums, isRead) where isRead { try sum.settle() }
        let pieces = Pieces(zip(optimizer.parameters, isRead).map { $1 ? $0.elementCount : 0 })
        let squares = try pieces.sums { [sums] index, range in
            SIMD2(sums[index].sumOfSquares(from: range.lowerBound, count: range.count), 0)
        }
        for sum in sums { sum.hasNewSums = false }
        // A sum may have got beyond float32 before, by given gradients that are finite.
        let isCertain = isAfterSkip || !window.hasGiven
        noteNonFinite(squares.indices.filter { !squares[$0].x.isFinite }, in: isCertain ? microBatchNumber : nil)
    }
}
