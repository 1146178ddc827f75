/// What a schedule counts. Only an applied update moves the clock: neither a micro-batch nor a window that is dropped.
public enum UpdateClock: Int32, CaseIterable, Sendable {
    /// By 1.
    case updates = 0
    /// By the weight of its window: the samples or tokens that went in.
    case weight = 1
}
