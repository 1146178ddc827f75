import CShims

/// The number that losses are multiplied by, so that gradients in half precision do not vanish: it goes down when they
/// overflow, and up again when they have not for a while.
///
/// Accumulators that it is attached to, see ``Accumulator/setLossScaler(_:)``, scale and unscale on their own. Each window
/// keeps the scale that it began with. Windows are counted in rounds, of which each gives one update of the scale: a round
/// takes in the next window of every accumulator, and is over when each has ended one, or when one that has begins
/// another. With gradients of the caller, ``unscale(_:_:scale:optimizer:)`` takes them in and ``update()`` ends the round.
///
/// Objects that share a scaler are used by one thread at a time.
public final class LossScaler {
    public let options: Options
    /// Of windows that begin in this round, and of gradients of the caller's until ``update()``.
    public var scale: Double { current.scale }

    private var current: State
    private var found = Finding.nothing
    /// Counts from 1, so that no accumulator has ended a window in the first.
    private var round = 1
    private var attached = 0
    private var ended = 0
    /// The caller's optimizers whose gradients were unscaled in this round.
    private var unscaled: Set<Int> = []

    /// What the windows of a round have shown.
    enum Finding {
        /// No update and no overflow.
        case nothing
        case finite
        case overflow
    }

    public struct Options: Sendable {
        public var initScale: Double
        public var growthFactor: Double
        public var backoffFactor: Double
        /// Rounds of applied updates without an overflow after which the scale is multiplied by the growth factor.
        public var growthInterval: Int
        /// Rounds with an overflow after which the scale is multiplied by the backoff factor. It then is with each that
        /// follows, until the scale grows (Megatron-LM, DynamicGradScaler).
        public var hysteresis: Int
        /// Whether only overflows in a row count for hysteresis (DeepSpeed, consecutive_hysteresis).
        public var isHysteresisConsecutive: Bool
        /// The scale never goes below this, nor above the other.
        public var minScale: Double
        public var maxScale: Double
        /// Whether the scale changes at all. A static one is the initial scale.
        public var isDynamic: Bool
        /// Whether scales and factors may be other than powers of two. Those change the rounding of every gradient.
        public var allowsAnyScale: Bool

        public init(
            initScale: Double = 65536, growthFactor: Double = 2, backoffFactor: Double = 0.5,
            growthInterval: Int = 2000, hysteresis: Int = 1, isHysteresisConsecutive: Bool = false,
            minScale: Double = 1, maxScale: Double = 0x1p24, isDynamic: Bool = true, allowsAnyScale: Bool = false
        ) {
            self.initScale = initScale
            self.growthFactor = growthFactor
            self.backoffFactor = backoffFactor
            self.growthInterval = growthInterval
            self.hysteresis = hysteresis
            self.isHysteresisConsecutive = isHysteresisConsecutive
            self.minScale = minScale
            self.maxScale = maxScale
            self.isDynamic = isDynamic
            self.allowsAnyScale = allowsAnyScale
        }
    }

    /// What a scaler needs to go on, between rounds, as another one would have.
    public struct State: Sendable, Equatable {
        public var scale: Double
        /// Rounds without an overflow towards the next growth.
        public var growthTracker: Int
        /// Rounds with an overflow that are left before the scale goes down, that one included.
        public var hysteresisTracker: Int

        public init(scale: Double, growthTracker: Int, hysteresisTracker: Int) {
            self.scale = scale
            self.growthTracker = growthTracker
            self.hysteresisTracker = hysteresisTracker
        }
    }

    /// Scales that leave room for gradients in float32.
    static let scales = 0x1p-64...0x1p64

    /// Errors: `invalidArgument` for an option outside of its range.
    public init(_ options: Options = Options()) throws(GAError) {
        try options.validate()
        var options = options
        // Losses are multiplied by it in float32.
        options.initScale = Double(Float(options.initScale))
        options.minScale = Double(Float(options.minScale))
        options.maxScale = Double(Float(options.maxScale))
        self.options = options
        current = State(scale: options.initScale, growthTracker: 0, hysteresisTracker: options.hysteresis)
    }

    /// Whether a window can have a lower scale than this.
    func canGoBelow(_ scale: Double) -> Bool { options.isDynamic && scale > options.minScale }

    // MARK: State

    /// What another scaler of the same options goes on from.
    ///
    /// Errors: `state` in the middle of a round, of which no state knows who had a part in it.
    public var state: State {
        get throws(GAError) {
            try requireBetweenRounds("loss_scaler_save")
            return current
        }
    }

    /// Goes on from a state. Windows in progress keep the scale that they began with.
    ///
    /// Errors: `state` in the middle of a round, `invalidArgument` for a state that a scaler of these options cannot have.
    public func setState(_ state: State) throws(GAError) {
        try requireBetweenRounds("loss_scaler_load")
        // Rounded as those of the options are.
        let scale = Double(Float(state.scale))
        let isRounded = options.allowsAnyScale && options.range.contains(scale)
        try options.require(isRounded ? scale : state.scale, "scale", in: options.range)
        func require(_ value: Int, _ name: StaticString, in range: ClosedRange<Int>) throws(GAError) {
            guard !range.contains(value) else { return }
            throw GAError(
                .invalidArgument,
                "loss_scaler: \(name) is \(value), and with these options it is in \(range.lowerBound) ... "
                    + "\(range.upperBound): load into a scaler with the options of the one that was saved")
        }
        try require(state.growthTracker, "growth_tracker", in: 0...(options.growthInterval - 1))
        try require(state.hysteresisTracker, "hysteresis_tracker", in: 1...options.hysteresis)
        current = state
        current.scale = scale
    }

    // MARK: Rounds

    private var isRoundUnderWay: Bool { found != .nothing || ended > 0 || !unscaled.isEmpty }

    private func requireBetweenRounds(_ operation: StaticString) throws(GAError) {
        guard isRoundUnderWay else { return }
        let what =
            unscaled.isEmpty
            ? "a round is under way, in which \(ended) of \(attached) accumulators have ended a window: first step the "
                + "others, or end it with loss_scaler_update"
            : "gradients were unscaled since the last update: first call loss_scaler_update, after the steps"
        throw GAError(.state, "\(operation): \(what)")
    }

    /// Ends the round: one update of the scale, by what the windows and gradients in it have shown.
    ///
    /// Rounds of accumulators alone end by themselves. Errors: `state` if the round has shown nothing yet.
    public func update() throws(GAError) {
        guard isRoundUnderWay else {
            throw GAError(
                .state,
                "loss_scaler_update: nothing was unscaled and no window ended since the last update: unscale gradients first (a "
                    + "round of accumulators alone ends by itself)")
        }
        endRound()
    }

    private func endRound() {
        current = afterRound
        found = .nothing
        ended = 0
        round += 1
        unscaled.removeAll(keepingCapacity: true)
    }

    /// What the state becomes if the round ends with what was found so far.
    private var afterRound: State {
        var state = current
        switch found {
        case .nothing: break
        case .overflow:
            state.growthTracker = 0
            if state.hysteresisTracker > 1 { state.hysteresisTracker -= 1 } else { state.scale = lower(state.scale) }
        case .finite:
            if options.isHysteresisConsecutive { state.hysteresisTracker = options.hysteresis }
            state.growthTracker += 1
            if state.growthTracker == options.growthInterval {
                state.growthTracker = 0
                state.hysteresisTracker = options.hysteresis
                if options.isDynamic {
                    state.scale = min(Double(Float(state.scale * options.growthFactor)), options.maxScale)
                }
            }
        }
        return state
    }

    private func lower(_ scale: Double) -> Double {
        options.isDynamic ? max(Double(Float(scale * options.backoffFactor)), options.minScale) : scale
    }

    /// Takes in what gradients under a scale have shown. An overflow tells of that scale and those above it, and its
    /// absence of that scale and those below.
    private func take(_ finding: Finding, under windowScale: Double) {
        switch finding {
        case .nothing: break
        case .overflow:
            if windowScale <= scale { found = .overflow }
        case .finite:
            if windowScale >= scale && found == .nothing { found = .finite }
        }
    }

    // MARK: Windows of accumulators

    func attach() { attached += 1 }

    /// An accumulator goes, of which `lastRound` is the last round in which it ended a window.
    func detach(lastRound: Int) {
        attached -= 1
        if lastRound == round { ended -= 1 }
        endRoundOfAll()
    }

    /// Whether a window that begins ends the round, of an accumulator that last ended one in `lastRound`.
    private func isOver(for lastRound: Int) -> Bool { lastRound == round && unscaled.isEmpty }

    /// The scale of the next window of an accumulator that last ended one in `lastRound`.
    func scaleOfWindow(lastRound: Int) -> Double { isOver(for: lastRound) ? afterRound.scale : scale }

    /// A window has begun, with that scale. What fails before there is anything in it leaves the round as it was.
    func beginWindow(lastRound: Int) {
        if isOver(for: lastRound) { endRound() }
    }

    /// Takes in the end of a window. Returns the round that it belongs to.
    func endWindow(_ finding: Finding, under windowScale: Double, lastRound: Int) -> Int {
        take(finding, under: windowScale)
        if lastRound != round { ended += 1 }
        defer { endRoundOfAll() }
        return round
    }

    private func endRoundOfAll() {
        if isRoundUnderWay && ended == attached && unscaled.isEmpty { endRound() }
    }

    /// Lowers the scale below that of a window which is to be computed again, whatever hysteresis says. Returns false if
    /// that cannot be done.
    func lowerForRetry(below windowScale: Double) -> Bool {
        guard canGoBelow(windowScale) else { return false }
        current.growthTracker = 0
        if scale >= windowScale { current.scale = lower(windowScale) }
        return scale < windowScale
    }

    // MARK: Gradients of the caller

    /// Divides gradients by the scale that they carry, in place, and looks for NaNs and infinities in the same pass.
    ///
    /// Returns their global 2-norm, which is not finite exactly if one of them is not. What was found counts for the next
    /// ``update()``, whether a step follows or not.
    /// - Parameters:
    ///   - gradients: contiguous arrays, or nil, with the number of their elements. No two share memory.
    ///   - dtype: float32 or bfloat16. In float16 they would lose what the scale has saved.
    ///   - scale: what ``scale`` was when the loss was multiplied by it.
    ///   - optimizer: a number of the caller's that tells its optimizers apart. What is given under two is divided twice.
    /// - Throws: `state` if this optimizer's were unscaled in this round, `dtype`, `invalidArgument` for a bad scale or
    ///   arrays that share memory.
    public func unscale(
        _ gradients: [(address: UnsafeMutableRawPointer?, count: Int)], _ dtype: DType = .float32, scale: Double,
        optimizer: Int = 0
    ) throws(GAError) -> Double {
        let operation: StaticString = "loss_scaler_unscale"
        guard dtype == .float32 || dtype == .bfloat16 else {
            let advice =
                dtype == .float16
                ? ", as unscaled in float16 they lose what the scale has saved: add them up with accumulate_scaled_gradients"
                : ""
            throw GAError(.dtype, "\(operation): dtype is \(dtype), and float32 or bfloat16 is needed\(advice)")
        }
        try LossScaler.requireScale(scale, operation)
        guard !unscaled.contains(optimizer) else {
            throw GAError(
                .state,
                "\(operation): the gradients of optimizer \(optimizer) have been unscaled since the last update: unscale "
                    + "once, after the last backward, and call loss_scaler_update after the steps")
        }
        try LossScaler.requireApart(gradients, dtype, operation)
        let pieces = Pieces(gradients.map { $0.address == nil ? 0 : $0.count })
        let factor = Float(1 / scale)
        var squares = [Double](repeating: 0, count: pieces.count)
        try squares.withUnsafeMutableBufferPointer { (squares) throws(GAError) in
            let squares = UnsafeMutableBufferPointer(rebasing: squares[...])
            try Runtime.parallel(tiles: pieces.count, scratch: dtype == .float32 ? 0 : Pieces.grain) { tile, scratch in
                let (index, start, count) = pieces[tile]
                let address = gradients[index].address! + start * dtype.byteCount
                // What is scaled is still in the cache when its squares are added up.
                let floats = dtype == .float32 ? address.assumingMemoryBound(to: Float.self) : scratch
                Runtime.kernels.add_scaled(floats, address, dtype.format, factor, Int64(count), 0)
                squares[tile] = Runtime.kernels.sum_of_squares(floats, Int64(count))
                if dtype != .float32 {
                    Runtime.kernels.from_f32(
                        address.assumingMemoryBound(to: UInt16.self), dtype.format, floats, Int64(count))
                }
            }
        }
        let norm = squares.reduce(0, +).squareRoot()
        unscaled.insert(optimizer)
        take(norm.isFinite ? .finite : .overflow, under: scale)
        return norm
    }

    /// Errors: `invalidArgument` if two arrays share memory, which would be divided twice, and by two threads at once.
    private static func requireApart(
        _ gradients: [(address: UnsafeMutableRawPointer?, count: Int)], _ dtype: DType, _ operation: StaticString
    ) throws(GAError) {
        let spans = gradients.enumerated().filter { $1.address != nil && $1.count > 0 }
            .map { (index: $0, start: UInt(bitPattern: $1.address), bytes: UInt($1.count) &* UInt(dtype.byteCount)) }
            .sorted { $0.start < $1.start }
        for (one, next) in zip(spans, spans.dropFirst()) where next.start - one.start < one.bytes {
            throw GAError(
                .invalidArgument,
                "\(operation): gradients[\(max(one.index, next.index))] shares memory with "
                    + "gradients[\(min(one.index, next.index))], which would be divided twice: pass each array once")
        }
    }

    /// Errors: `invalidArgument` unless gradients can carry the scale.
    static func requireScale(_ scale: Double, _ operation: StaticString) throws(GAError) {
        guard !scales.contains(scale) else { return }
        throw GAError(
            .invalidArgument,
            "\(operation): scale is \(scale): it must be in \(scales.lowerBound) ... \(scales.upperBound), and 1 for gradients "
                + "that are not scaled")
    }
}

extension LossScaler.Options {
    /// Of the scale.
    fileprivate var range: ClosedRange<Double> { isDynamic ? minScale...maxScale : initScale...initScale }

    /// Errors: `invalidArgument` for an option outside of its range.
    func validate() throws(GAError) {
        let scales = LossScaler.scales
        try require(minScale, "min_scale", in: scales)
        try require(maxScale, "max_scale", in: minScale...scales.upperBound)
        try require(initScale, "init_scale", in: isDynamic ? minScale...maxScale : scales)
        try require(growthFactor, "growth_factor", in: 1...scales.upperBound)
        try require(backoffFactor, "backoff_factor", in: scales.lowerBound...1)
        guard growthFactor > 1 && backoffFactor < 1 else {
            throw GAError(
                .invalidArgument,
                "loss_scaler: growth_factor is \(growthFactor) and backoff_factor \(backoffFactor): one must be above 1 and the "
                    + "other below; for a scale that stays, set dynamic to 0")
        }
        for (value, name) in [(growthInterval, "growth_interval"), (hysteresis, "hysteresis")] where value < 1 {
            throw GAError(.invalidArgument, "loss_scaler: \(name) is \(value): it must be at least 1")
        }
    }

    /// Errors: `invalidArgument` unless the number is in the range and, where that is asked for, a power of two.
    fileprivate func require(_ value: Double, _ option: StaticString, in range: ClosedRange<Double>) throws(GAError) {
        guard range.contains(value) else {
            throw GAError(
                .invalidArgument,
                "loss_scaler: \(option) is \(value): it must be in \(range.lowerBound) ... \(range.upperBound)")
        }
        guard allowsAnyScale || value.significand == 1 else {
            throw GAError(
                .invalidArgument,
                "loss_scaler: \(option) is \(value), and no power of two: take one, such as \(value.binade), or set "
                    + "allow_any_scale, and scaling changes the rounding of gradients")
        }
    }
}
