extension Accumulator {
    /// Micro-batches after which a step is due in this window, or in the next one if nothing has begun.
    public var accumulationSteps: Int { window.accumulationSteps ?? stepsSetting }

    /// Whether the window has as many micro-batches as it needs. A step may be taken earlier, and more may be added: the
    /// divisor is what went in.
    public var isStepDue: Bool { window.microBatches >= accumulationSteps }

    /// Changes the number of micro-batches in a window, from the next one on; a window in progress keeps its own.
    ///
    /// Errors: `invalidArgument` if it is below 1.
    public func setAccumulationSteps(_ steps: Int) throws(GAError) {
        try Accumulator.requireSteps(steps, "set_accumulation_steps")
        stepsSetting = steps
    }

    /// Settles the number of a window whose first micro-batch begins.
    func startWindow() {
        if window.accumulationSteps == nil { window.accumulationSteps = stepsSetting }
    }
}
