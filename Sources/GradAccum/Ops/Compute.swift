import CShims

/// What linear layers and attention compute in on this thread.
///
/// With bfloat16 they round what they multiply to it, add up in float32, and give results in bfloat16; normalisations,
/// softmax, losses and the gradients of parameters stay float32, and so do the parameters themselves.
public enum Compute {
    private static let slot = Int32(SHIMS_SLOT_COMPUTE_DTYPE)

    /// float32 or bfloat16.
    public static var dtype: DType { shims_thread_slot(slot) == nil ? .float32 : .bfloat16 }

    /// Errors: `unsupported` for a type that nothing can compute in.
    public static func setDType(_ dtype: DType) throws(GAError) {
        guard dtype == .float32 || dtype == .bfloat16 else {
            throw GAError(.unsupported, "compute_dtype is \(dtype): this version computes in float32 or bfloat16")
        }
        shims_set_thread_slot(slot, dtype == .float32 ? nil : UnsafeMutableRawPointer(bitPattern: 1))
    }

    /// Runs `body` with operations of this thread computing in `dtype`.
    public static func with<Result>(
        _ dtype: DType, _ body: () throws(GAError) -> Result
    ) throws(GAError) -> Result {
        let before = Compute.dtype
        try setDType(dtype)
        defer { try? setDType(before) }
        return try body()
    }
}
