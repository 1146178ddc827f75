import CShims

/// Where a window first was not finite.
extension Accumulator {
    /// Whether to look for what is not finite while micro-batches are added in place: under a loss scale, and after a skip.
    ///
    /// In isolated mode each is looked at before it is added.
    private var isWatching: Bool {
        let found = window.firstNonFinite
        return !options.isIsolated && (found == nil || found?.microBatch == microBatchNumber)
            && (lossScaler != nil || consecutiveSkips > 0)
    }

    private var microBatchNumber: Int { window.microBatch?.number ?? window.nextNumber }

    /// Runs `add` for pieces of given gradients, and looks at these while they are in the cache: it adds `count` elements
    /// from `start` on of an array, and returns their address. Returns the arrays that are not finite times `factor`, if that
    /// is looked for.
    func addGiven(
        _ pieces: Pieces, _ dtype: DType, times factor: Float,
        _ add: (_ array: Int, _ start: Int, _ count: Int) -> UnsafeRawPointer
    ) throws(GAError) -> [Int] {
        guard isWatching else {
            try pieces.forEach { _ = add($0, $1, $2) }
            return []
        }
        let found = try pieces.sums { array, range in
            let gradient = add(array, range.lowerBound, range.count)
            let largest = Runtime.kernels.largest_magnitude(gradient, dtype.format, Int64(range.count))
            return SIMD2((factor * largest).isFinite ? 0 : 1, 0)
        }
        return found.indices.filter { found[$0].x > 0 }
    }

    /// Notes the first of some parameters whose gradient in this micro-batch is not finite.
    func noteNonFinite(_ parameters: [Int]) {
        guard var parameter = parameters.first(where: { optimizer.parameters[$0].requiresGrad }) else { return }
        // Of gradients that come one after another, that of the last parameter may be the first to come.
        if let before = window.firstNonFinite?.parameter, before < parameter { parameter = before }
        window.firstNonFinite = WindowReport.NonFinite(parameter: parameter, microBatch: microBatchNumber)
    }

    /// The same after a backward pass, whose gradients show in the sums alone: these are read, at little cost beside it.
    func noteNonFiniteSums() throws(GAError) {
        guard isWatching else { return }
        for sum in sums { try sum.settle() }
        let pieces = Pieces(zip(optimizer.parameters, sums).map { $1.isUsed ? $0.elementCount : 0 })
        let squares = try pieces.sums { [sums] index, range in
            SIMD2(sums[index].sumOfSquares(from: range.lowerBound, count: range.count), 0)
        }
        noteNonFinite(squares.indices.filter { !squares[$0].x.isFinite })
    }

    /// Where the window first held a NaN or an infinity, as far as that is known: not for a sum that only got beyond float32
    /// by adding up.
    func whereNonFinite() throws(GAError) -> WindowReport.NonFinite {
        // What a dropped micro-batch held is not in the sums.
        if !options.isIsolated, let found = window.firstNonFinite { return found }
        let parameter = norms(of: try foldWindow()).firstIndex { !Float($0).isFinite }
        let isOnlyOne = window.microBatches == 1 && window.aborted == 0
        return WindowReport.NonFinite(parameter: parameter, microBatch: parameter != nil && isOnlyOne ? 0 : nil)
    }
}
