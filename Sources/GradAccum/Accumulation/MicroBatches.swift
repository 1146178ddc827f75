import CShims

extension Accumulator {
    /// Begins a micro-batch: all that is accumulated until its commit belongs to it, and counts together.
    ///
    /// Without this, each loss is a micro-batch of its own. Errors: `state` if one is open.
    public func beginMicroBatch() throws(GAError) {
        try requireBetweenMicroBatches("micro_batch_begin")
        try requireOpenSums("micro_batch_begin")
        startWindow()
        window.microBatch = MicroBatch(number: window.nextNumber, start: Monotonic.now())
        finishStart()
    }

    /// Ends the open micro-batch, whose gradients are then in the window.
    ///
    /// In isolated mode one that is not finite is dropped instead, as if it had been aborted; see
    /// ``Options/onNonFinite``. Errors: `state` if none is open, or nothing was accumulated in it, or the weight of a mean is
    /// missing, and it stays open; `nonFinite` where the policy says so, and it is dropped.
    public func commitMicroBatch() throws(GAError) {
        let operation: StaticString = "micro_batch_commit"
        let open = try openMicroBatch(operation)
        guard open.additions > 0 || !open.hasGradients else {
            throw GAError(
                .state,
                "\(operation): the loss and the weight of micro-batch \(open.number) are missing: give them with "
                    + "accumulate_gradients")
        }
        guard open.additions > 0 else {
            throw GAError(
                .state,
                "\(operation): nothing was accumulated in micro-batch \(open.number): accumulate first, or abort it")
        }
        guard !open.isBroken else {
            throw GAError(.state, "\(operation): micro-batch \(open.number) has failed half-way: abort it")
        }
        guard !open.isWeightToCome || options.lossReduction == .sum else {
            throw GAError(
                .state,
                "\(operation): the weight of micro-batch \(open.number) is missing, and that of a mean is part of its "
                    + "gradient: give it with micro_batch_set_weight first")
        }
        isBusy = true
        defer { isBusy = false }
        try commit(open, operation)
    }

    /// Takes the open micro-batch back: the window is as it was before it began.
    ///
    /// Errors: `state` if none is open, or if something was added in place, in exact mode; it then stays open.
    public func abortMicroBatch() throws(GAError) {
        let operation: StaticString = "micro_batch_abort"
        let open = try openMicroBatch(operation)
        guard options.isIsolated || (open.additions == 0 && !open.hasGradients) else {
            throw GAError(
                .state,
                "\(operation): micro-batch \(open.number) was added in place and cannot be taken back: commit it or drop the "
                    + "window with zero, and create the accumulator in isolated mode to abort")
        }
        emptyScratch()
        underflow?.rollBack()
        end(open)
        window.aborted += 1
    }

    func openMicroBatch(_ operation: StaticString) throws(GAError) -> MicroBatch {
        try requireIntact(operation)
        guard let open = window.microBatch else {
            throw GAError(.state, "\(operation): no micro-batch is open: call micro_batch_begin first")
        }
        return open
    }

    /// Puts a micro-batch into the window, or drops it if it is not finite and isolated.
    ///
    /// Errors: `outOfMemory`, and nothing has changed; `nonFinite` where the policy says so, and it was dropped.
    func commit(
        _ microBatch: MicroBatch, _ operation: StaticString, given: [UnsafePointer<Float>?]? = nil
    ) throws(GAError) {
        startWindow()
        if options.isIsolated {
            let found: WindowReport.NonFinite?
            do throws(GAError) {
                found =
                    if let loss = microBatch.nonFinite {
                        loss
                    } else if moments != nil {
                        try takeIntoMoments(microBatch, given)
                    } else {
                        try takeIn(microBatch)
                    }
            } catch {
                if window.microBatch == nil { emptyScratch() }
                throw error
            }
            for gradient in scratch { gradient.freeUnused() }
            emptyScratch()
            end(microBatch)
            if let found {
                underflow?.rollBack()
                window.aborted += 1
                window.firstNonFinite = window.firstNonFinite ?? found
                return try dropped(found, operation)
            }
        } else {
            try noteNonFiniteSums()
            end(microBatch)
        }
        consecutiveDrops = 0
        window.isCarried = false
        window.count(microBatch)
        underflow?.commit()
    }

    /// Forgets the gradients of the micro-batch; moments have no memory for them between two.
    func emptyScratch() {
        for gradient in scratch {
            gradient.empty()
            if moments != nil { gradient.free() }
        }
    }

    private func end(_ microBatch: MicroBatch) {
        window.microBatch = nil
        let now = Monotonic.now()
        let start = microBatch.start > lastEnd ? microBatch.start : lastEnd
        window.forwardBackwardSeconds += Monotonic.seconds(from: start, to: now)
        lastEnd = now
    }

    /// Whether what a gradient comes to with a weight that came later is finite, given its sum of squares.
    private func isFinite(_ gradient: Tensor?, squares: Double, times scale: Float) -> Bool {
        guard squares.isFinite, let gradient else { return squares.isFinite }
        // No element is larger than the norm, so only a very large one is looked at again.
        if Float(squares.squareRoot() * Double(scale)).isFinite { return true }
        let largest = Runtime.kernels.largest_magnitude(gradient.floats, SHIMS_F32, Int64(gradient.elementCount))
        return (largest * scale).isFinite
    }

    /// Adds what a micro-batch has in scratch to the sums, unless it is not finite.
    ///
    /// Returns where it is not. Errors: `outOfMemory`, and nothing was added.
    private func takeIn(_ microBatch: MicroBatch) throws(GAError) -> WindowReport.NonFinite? {
        // What can fail comes first: places that were folded must not be folded again.
        let (parameters, update) = (optimizer.parameters, optimizer.updateCount)
        for index in scratch.indices where sums[index].firstDense == nil && scratch[index].isUsed {
            try sums[index].prepareDense(parameters[index], update: update)
        }
        let (gradients, squares) = try foldPlaces(scratch)
        let scale = microBatch.scale
        if let index = squares.indices.first(where: { !isFinite(gradients[$0], squares: squares[$0], times: scale) }) {
            let found = WindowReport.NonFinite(parameter: index, microBatch: microBatch.number)
            window.overflow = window.overflow ?? found
            return found
        }
        guard options.sumFormat == .float32 else {
            // In place, as memory to scale into may not be had once a sum has changed.
            for case (let sum, let gradient?) in zip(sums, gradients) {
                let values = gradient.floats
                if scale != 1 {
                    Runtime.kernels.add_scaled(values, values, SHIMS_F32, scale, Int64(gradient.elementCount), 0)
                }
                try sum.rounded[0].add(UnsafePointer(values))
            }
            return nil
        }
        let pieces = Pieces(gradients.map { $0?.elementCount ?? 0 })
        let addition = addition(.float32, scale)
        try pieces.forEach { [sums] index, start, count in
            sums[index].add(gradients[index]!.floats + start, addition, from: start, count: count)
        }
        for (index, gradient) in gradients.enumerated() where gradient != nil { sums[index].didAdd(addition) }
        return nil
    }
}
