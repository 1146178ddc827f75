/// The state of an optimizer as bytes, with which training goes on to the bit from the end of a window.
///
/// It is what updates have made: the slots of the rule with their clocks, the clock of schedules, and what a plateau
/// has seen. Weights, hyperparameters, groups, schedules, scalings and averages are the caller's to bring back. What an
/// accumulator has seen, such as losses to find outliers with, begins anew.
extension Optimizer {
    /// Bytes of ``saveState()``: the same at any time.
    public var stateByteCount: Int {
        var writer = StateWriter(nil)
        write(to: &writer, byteCount: 0)
        return writer.byteCount
    }

    /// The state, without a window in progress. Errors: `state` as ``saveState(into:)``.
    public func saveState() throws(GAError) -> [UInt8] {
        var state = [UInt8](repeating: 0, count: stateByteCount)
        try state.withUnsafeMutableBufferPointer { (bytes) throws(GAError) in
            try saveState(into: UnsafeMutableRawBufferPointer(bytes))
        }
        return state
    }

    /// Writes the state into ``stateByteCount`` bytes.
    ///
    /// Errors: `invalidArgument` for another number of bytes; `state` from within an accumulate or an update, and while
    /// moments hold a part of the accumulator's window.
    public func saveState(into target: UnsafeMutableRawBufferPointer) throws(GAError) {
        try requireBetweenUpdates("save_state")
        let byteCount = stateByteCount
        guard target.count == byteCount else {
            throw GAError(
                .invalidArgument,
                "save_state: size_bytes is \(target.count): it must be \(byteCount), what state_bytes gives")
        }
        var writer = StateWriter(target.baseAddress)
        write(to: &writer, byteCount: byteCount)
    }

    /// Goes on from a state, as the other `loadState` does.
    public func loadState(_ state: [UInt8]) throws(GAError) {
        try state.withUnsafeBufferPointer { (bytes) throws(GAError) in try loadState(UnsafeRawBufferPointer(bytes)) }
    }

    /// Goes on from a state of an optimizer with the same rule and shapes.
    ///
    /// A plateau goes on too, so its schedule is to be set before. All is checked before anything changes. Errors:
    /// `invalidArgument` for bytes that are no such state, `shape`, `unsupported` for those of a newer library; `state`
    /// as ``saveState(into:)``.
    public func loadState(_ state: UnsafeRawBufferPointer) throws(GAError) {
        try requireBetweenUpdates("load_state")
        let found = try read(state)
        if let accumulator, accumulator.moments == nil, found.parameters.contains(where: \.isInMoments) {
            throw GAError(
                .state,
                "load_state: state has moments that hold a part of a window, and the optimizer's accumulator adds "
                    + "gradients up: create one with accumulate_into moments")
        }
        for (slot, bytes) in zip(slots.joined(), found.parameters.map(\.slots).joined()) where !bytes.isEmpty {
            slot.storage.address.copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
        }
        progress.resume(updates: found.updates, weight: found.weight, plateau: found.plateau)
        updateCounts = found.parameters.map(\.updateCount)
        momentTimes = found.parameters.map(\.momentTime)
        isInMoments = found.parameters.map(\.isInMoments)
    }

    private func requireBetweenUpdates(_ operation: StaticString) throws(GAError) {
        try requireIdle(operation)
        guard let accumulator, accumulator.moments != nil, !accumulator.window.isEmpty else { return }
        throw GAError(
            .state, "\(operation): accumulate_into is moments, which hold a part of this window: take a step first")
    }
}

// MARK: The layout, which the header describes

extension Optimizer {
    /// "ga_optim".
    private static let magic: UInt64 = 0x6d69_7470_6f5f_6167
    private static let version = 1

    private struct FoundState {
        struct Parameter {
            let updateCount: Int
            let momentTime: Double
            let isInMoments: Bool
            /// In the bytes that are read.
            var slots: [UnsafeRawBufferPointer] = []
        }

        let updates: Int
        let weight: Double
        let plateau: Plateau.State
        var parameters: [Parameter] = []
    }

    private var ruleName: String { "\(type(of: rule).name)" }

    private func write(to writer: inout StateWriter, byteCount: Int) {
        writer.put(Optimizer.magic)
        writer.put(Optimizer.version)
        writer.put(byteCount)
        writer.put(ruleName)
        writer.put(progress.updates)
        writer.put(progress.weight)
        progress.plateau.write(to: &writer)
        writer.put(parameters.count)
        for (index, parameter) in parameters.enumerated() {
            writer.put(parameter.shape)
            writer.put(updateCounts[index])
            writer.put(momentTimes[index])
            writer.put(isInMoments[index])
            writer.put(slots[index].count)
            for memory in slots[index] {
                writer.put(memory.slot.name)
                writer.put(memory.slot.element.name)
                writer.put(memory.slot.shape)
                writer.put(memory.storage.address, byteCount: memory.byteCount)
            }
        }
    }

    private func read(_ state: UnsafeRawBufferPointer) throws(GAError) -> FoundState {
        var reader = StateReader(state)
        guard try reader.word("its first word") == Optimizer.magic else {
            throw GAError(
                .invalidArgument, "load_state: state does not begin with \"ga_optim\": pass what save_state has written"
            )
        }
        let version = try reader.count("its version")
        guard version == Optimizer.version else {
            throw GAError(
                .unsupported,
                "load_state: state has version \(version), and this library reads version \(Optimizer.version): use "
                    + "one that is as new as the library that saved it")
        }
        let byteCount = try reader.count("its size")
        guard byteCount == state.count else {
            throw GAError(
                .invalidArgument,
                "load_state: size_bytes is \(state.count), and the state has \(byteCount): pass all that save_state "
                    + "has written")
        }
        try reader.expect(ruleName, "the rule")
        var found = FoundState(
            updates: try reader.count("the updates"), weight: try reader.amount("their weight"),
            plateau: try Plateau.State(from: &reader))
        try reader.expect(parameters.count, "the number of parameters")
        for (index, parameter) in parameters.enumerated() {
            try reader.expect(parameter.shape, "parameters[\(index)]")
            var own = FoundState.Parameter(
                updateCount: try reader.count("the updates of parameters[\(index)]"),
                momentTime: try reader.amount("the time of parameters[\(index)]"),
                isInMoments: try reader.flag("whether the moments of parameters[\(index)] hold a part of a window"))
            guard !own.isInMoments || rule is any MomentRule else {
                throw GAError(
                    .invalidArgument,
                    "load_state: state has a part of a window for parameters[\(index)], and \(ruleName) has no moments "
                        + "that could hold it: it is damaged")
            }
            try reader.expect(slots[index].count, "the number of slots of parameters[\(index)]")
            for memory in slots[index] {
                let name = "\(memory.slot.name) of parameters[\(index)]"
                try reader.expect(memory.slot.name, "the name of \(name)")
                try reader.expect(memory.slot.element.name, "the type of \(name)")
                try reader.expect(memory.slot.shape, name)
                own.slots.append(try reader.bytes(memory.byteCount, name))
            }
            found.parameters.append(own)
        }
        try reader.expectEnd()
        return found
    }
}

extension Plateau.State {
    fileprivate func write(to writer: inout StateWriter) {
        writer.put(factor)
        writer.put(best != nil)
        writer.put(best ?? 0)
        writer.put(badCount)
        writer.put(cooldownCount)
    }

    fileprivate init(from reader: inout StateReader) throws(GAError) {
        factor = try reader.amount("the factor of the plateau")
        guard factor <= 1 else {
            throw GAError(
                .invalidArgument, "load_state: state has \(factor) as the factor of the plateau: it must be in 0 ... 1")
        }
        let hasBest = try reader.flag("whether the plateau has seen a value")
        let value = try reader.double("the best value of the plateau")
        guard hasBest || value.bitPattern == 0 else {
            throw GAError(
                .invalidArgument,
                "load_state: state has \(value) as the best value of a plateau that has seen none: it is damaged")
        }
        best = hasBest ? value : nil
        badCount = try reader.count("the values of the plateau without an improvement")
        cooldownCount = try reader.count("the cooldown of the plateau", in: 0...Int.max)
    }
}
