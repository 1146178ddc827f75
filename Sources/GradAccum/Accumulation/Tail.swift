extension Accumulator {
    /// What becomes of a window when the data ends.
    public enum Tail: Int32, CaseIterable, Sendable {
        /// It is stepped, divided by the weight that went in, however short it is.
        case step = 0
        /// It stays, and what comes next is added to it.
        case carry = 1
        /// It is dropped.
        case drop = 2
    }

    /// Says that more data begins, such as the next epoch.
    ///
    /// Errors: `state` if the window holds micro-batches that ``endData(_:)`` did not carry over.
    public func beginData() throws(GAError) {
        try requireBetweenMicroBatches("data_begin")
        try requireNoRetry("data_begin")
        guard window.microBatches == 0 || window.isCarried else {
            throw GAError(
                .state,
                "data_begin: the window holds \(window.microBatches) micro-batches of earlier data: say what becomes of them "
                    + "with data_end (step, carry or drop)")
        }
        if window.microBatches == 0 { abandon() }
        window.isCarried = false
    }

    /// Says that the data ends, and what becomes of a window that has not been stepped.
    ///
    /// Returns the report of the step, or what the window holds where it is carried or dropped; nothing in the window is no
    /// error. Errors: those of ``step()``, of which none is about a window that is to be dropped.
    public func endData(_ tail: Tail) throws(GAError) -> WindowReport {
        let operation: StaticString = "data_end"
        if tail == .drop {
            try requireIdle(operation)
            try requireDroppable(operation)
        } else {
            try requireBetweenMicroBatches(operation)
        }
        try requireNoRetry(operation)
        var report = windowReport()
        guard !window.isEmpty || window.isBroken else {
            report.outcome = .empty
            return report
        }
        switch tail {
        case .step: return try endWindow(operation)
        case .carry:
            try requireOpenSums(operation)
            window.isCarried = true
        case .drop:
            report.outcome = .dropped
            abandon()
        }
        return report
    }
}
