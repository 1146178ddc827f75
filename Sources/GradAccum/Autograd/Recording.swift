import CShims

/// Whether operations of this thread are recorded for a backward pass.
public enum Recording {
    private static let slot = Int32(SHIMS_SLOT_RECORDING_OFF)

    public static var isOn: Bool {
        get { shims_thread_slot(slot) == nil }
        set { shims_set_thread_slot(slot, newValue ? nil : UnsafeMutableRawPointer(bitPattern: 1)) }
    }

    /// Runs `body` without recording, as for an evaluation.
    public static func off<Result>(_ body: () throws(GAError) -> Result) throws(GAError) -> Result {
        try set(false, during: body)
    }

    /// Runs `body` with recording.
    static func on<Result>(_ body: () throws(GAError) -> Result) throws(GAError) -> Result {
        try set(true, during: body)
    }

    private static func set<Result>(
        _ recording: Bool, during body: () throws(GAError) -> Result
    ) throws(GAError) -> Result {
        let before = isOn
        isOn = recording
        defer { isOn = before }
        return try body()
    }
}
