/// An array of state that a rule keeps for a parameter: what a state dictionary has to say of it.
public struct Slot: Sendable, Equatable {
    /// The type of its elements.
    public enum Element: Sendable {
        case float32
        case uint8

        public var byteCount: Int { self == .float32 ? 4 : 1 }

        /// As numpy has it.
        var name: String { self == .float32 ? "float32" : "uint8" }
    }

    /// As PyTorch's state dictionaries have it, where there is one: "exp_avg".
    public let name: String
    public let element: Element
    public let shape: [Int]

    public init(_ name: String, _ element: Element = .float32, shape: [Int]) {
        self.name = name
        self.element = element
        self.shape = shape
    }
}

/// A slot with its memory, zeros at first.
struct SlotMemory {
    let slot: Slot
    let storage: Storage
    let byteCount: Int

    var floats: UnsafeMutablePointer<Float> { storage.address.assumingMemoryBound(to: Float.self) }

    /// Errors: `overflow`, `outOfMemory`, `invalidArgument` for a negative size.
    init(_ slot: Slot) throws(GAError) {
        let byteCount = try Shape.elementCount(slot.shape, "optimizer") * slot.element.byteCount
        let storage = try Storage(byteCount: byteCount, for: .training)
        let address = storage.address
        try Runtime.parallel(count: byteCount, grain: 1 << 20) { start, size in
            (address + start).initializeMemory(as: UInt8.self, repeating: 0, count: size)
        }
        self.slot = slot
        self.storage = storage
        self.byteCount = byteCount
    }
}
