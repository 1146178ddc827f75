extension Accumulator {
    /// Micro-batches after which a step is due in this window, or in the next one if nothing has begun.
    public var accumulationSteps: Int { window.accumulationSteps ?? nextAccumulationSteps }

    /// Whether the window has as many micro-batches as it needs. A step may be taken earlier, and more may be added: the
    /// divisor is what went in.
    public var isStepDue: Bool { window.microBatches >= accumulationSteps }

    /// Changes the number of micro-batches in a window, from the next one on; a window in progress keeps its own.
    ///
    /// It ends a ramp. Errors: `invalidArgument` if it is below 1.
    public func setAccumulationSteps(_ steps: Int) throws(GAError) {
        try Accumulator.requireSteps(steps, "set_accumulation_steps")
        stepsSetting = .constant(steps)
    }

    /// Lets the number of micro-batches follow a ramp, from the next window on.
    ///
    /// Errors: `invalidArgument` for times that do not rise or a number below 1, and what held before stays.
    public func setRamp(_ ramp: AccumulationRamp) throws(GAError) {
        try ramp.validate()
        stepsSetting = .ramp(ramp)
    }

    private var nextAccumulationSteps: Int {
        switch stepsSetting {
        case .constant(let steps): steps
        case .ramp(let ramp): ramp.steps(at: optimizer.reading(of: ramp.clock))
        }
    }

    /// Settles the number, and the loss scale, of a window whose first micro-batch begins.
    func startWindow() {
        if window.accumulationSteps == nil { window.accumulationSteps = nextAccumulationSteps }
        if window.lossScale == nil { window.lossScale = lossScaler?.scaleOfWindow(lastRound: lastRound) }
    }

    /// Has the window that was started begin, unless what was to go into it has failed and it is as it was.
    func finishStart() {
        if window.isEmpty && !window.isBroken {
            window = Window()
        } else {
            lossScaler?.beginWindow(lastRound: lastRound)
        }
    }
}
