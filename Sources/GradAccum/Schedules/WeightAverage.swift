import CShims
import Glibc

/// An exponential moving average of an optimizer's weights, in float32: it moves once per applied update.
///
/// It starts as the weights are. For an evaluation, ``swapIn()`` exchanges the weights with their averages and
/// ``swapOut()`` brings them back; in between, nothing can be accumulated or stepped. An average that goes away while it
/// is swapped in brings them back itself.
public final class WeightAverage {
    public enum Decay: Sendable, Equatable {
        /// What an average keeps of itself at an update, in 0 ... 1 without 1.
        case perUpdate(Double)
        /// The updates, or their weight, after which it has kept half.
        case halfLife(Double, UpdateClock)
    }

    public let optimizer: Optimizer
    public let decay: Decay
    /// Whether update t, counted from 1, keeps (1 + t) / (10 + t) at most, so that the start does not stay for long.
    public let isWarmedUp: Bool
    /// Updates that it has seen.
    public private(set) var updateCount = 0
    public private(set) var isSwappedIn = false

    private let averages: [Tensor]
    /// Per parameter, its average and itself: kept, so that an update makes no array.
    private let pairs: [(average: UnsafeMutablePointer<Float>, weights: UnsafeMutablePointer<Float>)]
    private let pieces: Pieces

    /// Errors: `invalidArgument` for a decay outside of its range; `state` while another average is swapped in;
    /// `outOfMemory`.
    public init(_ optimizer: Optimizer, _ decay: Decay = .perUpdate(0.999), isWarmedUp: Bool = false) throws(GAError) {
        try decay.validate()
        try optimizer.requireOwnWeights("average")
        var averages: [Tensor] = []
        for parameter in optimizer.parameters { averages.append(try WeightAverage.copy(of: parameter)) }
        self.optimizer = optimizer
        self.decay = decay
        self.isWarmedUp = isWarmedUp
        self.averages = averages
        pairs = zip(averages, optimizer.parameters).map { ($0.floats, $1.floats) }
        pieces = Pieces(averages.map(\.elementCount))
        optimizer.averages.removeAll { $0.average == nil }
        optimizer.averages.append(Reference(average: self))
    }

    deinit { if isSwappedIn { try? exchange() } }

    /// How an optimizer knows its averages, which keep it alive and not the other way round.
    struct Reference {
        weak var average: WeightAverage?
    }

    /// Moves towards the weights, which an update of a window of `weight` has made.
    func advance(weight: Double) throws(GAError) {
        updateCount += 1
        var (share, keep) = decay.shares(weight: weight)
        let time = Double(updateCount)
        if isWarmedUp && keep > (1 + time) / (10 + time) { (share, keep) = (9 / (10 + time), (1 + time) / (10 + time)) }
        try pieces.forEach { [pairs] index, start, count in
            Runtime.kernels.move_average(
                pairs[index].average + start, pairs[index].weights + start, Float(share), Float(keep), Int64(count))
        }
    }

    /// A copy of the average of parameter `index`. Errors: `index`, `outOfMemory`.
    public func weights(_ index: Int) throws(GAError) -> Tensor {
        guard averages.indices.contains(index) else {
            throw GAError(.index, "average: index is \(index), outside of 0 ... \(averages.count - 1)")
        }
        return try WeightAverage.copy(of: (isSwappedIn ? optimizer.parameters : averages)[index])
    }

    private static func copy(of weights: Tensor) throws(GAError) -> Tensor {
        let copy = try Tensor(uninitialized: weights.shape, for: "average", lifetime: .training)
        copy.floats.update(from: weights.floats, count: weights.elementCount)
        return copy
    }

    /// Starts anew from the weights as they are. Errors: `state` while an average is swapped in.
    public func reset() throws(GAError) {
        try optimizer.requireOwnWeights("average_reset")
        try pieces.forEach { [pairs] index, start, count in
            (pairs[index].average + start).update(from: pairs[index].weights + start, count: count)
        }
        updateCount = 0
    }

    /// Goes on from averages of before, one per parameter, that had seen so many updates. They are copied.
    ///
    /// All is checked before anything changes. Errors: `invalidArgument` for another number of them or an impossible
    /// count; `dtype`, `shape`; `state` while an average is swapped in; `outOfMemory`.
    public func load(_ weights: [Tensor], updateCount: Int) throws(GAError) {
        try optimizer.requireOwnWeights("average_load")
        guard weights.count == averages.count else {
            throw GAError(
                .invalidArgument,
                "average_load: count is \(weights.count): it must be \(averages.count), one tensor per parameter")
        }
        guard (0...1 << 53).contains(updateCount) else {
            throw GAError(.invalidArgument, "average_load: updates is \(updateCount): it must be in 0 ... \(1 << 53)")
        }
        var sources: [Tensor] = []
        for (index, (given, average)) in zip(weights, averages).enumerated() {
            guard given.dtype == .float32 else {
                throw GAError(.dtype, "average_load: weights[\(index)] is \(given.dtype): it must be float32")
            }
            guard given.shape == average.shape else {
                throw GAError(
                    .shape,
                    "average_load: weights[\(index)] has shape \(given.shape): it must be \(average.shape), the "
                        + "parameter's")
            }
            sources.append(given.isContiguous ? given : try given.packedData())
        }
        for (source, average) in zip(sources, averages) {
            average.floats.update(from: source.floats, count: source.elementCount)
        }
        self.updateCount = updateCount
    }

    /// Exchanges the weights with their averages.
    ///
    /// Errors: `state` while this or another average is swapped in, and from within an accumulate or a step.
    public func swapIn() throws(GAError) {
        try optimizer.requireOwnWeights("average_swap_in")
        try optimizer.requireIdle("average_swap_in")
        try exchange()
    }

    /// Brings the weights back, to the bit. Errors: `state` if this average is not swapped in.
    public func swapOut() throws(GAError) {
        guard isSwappedIn else {
            throw GAError(.state, "average_swap_out: this average is not swapped in: call swap_in first")
        }
        try exchange()
    }

    private func exchange() throws(GAError) {
        try pieces.forEach { [pairs] index, start, count in
            Runtime.kernels.exchange(pairs[index].average + start, pairs[index].weights + start, Int64(count))
        }
        for parameter in optimizer.parameters { parameter.storage.noteWrite() }
        isSwappedIn.toggle()
        optimizer.hasAverageSwappedIn = isSwappedIn
    }
}

extension WeightAverage.Decay {
    fileprivate func validate() throws(GAError) {
        switch self {
        case .perUpdate(let decay):
            guard decay >= 0 && decay < 1 else {
                throw GAError(.invalidArgument, "average: decay is \(decay): it must be at least 0 and below 1")
            }
        case .halfLife(let halfLife, _):
            guard halfLife.isFinite && halfLife > 0 else {
                throw GAError(.invalidArgument, "average: half_life is \(halfLife): it must be finite and above 0")
            }
        }
    }

    /// How far an average goes at an update, and what it keeps: 1 in all, each with all its digits.
    fileprivate func shares(weight: Double) -> (share: Double, keep: Double) {
        switch self {
        case .perUpdate(let decay): return (1 - decay, decay)
        case .halfLife(let halfLife, let clock):
            let time = (clock == .updates ? 1 : weight) / halfLife
            return (-expm1(-time * M_LN2), exp2(-time))
        }
    }
}

extension Optimizer {
    /// Errors: `state` while the weights are averages.
    func requireOwnWeights(_ operation: StaticString) throws(GAError) {
        guard !hasAverageSwappedIn else {
            throw GAError(
                .state, "\(operation): the weights are exchanged with an average: bring them back with swap_out first")
        }
    }
}
