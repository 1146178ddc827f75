import GradAccum

/// The kinds of objects that C holds.
enum HandleKind: UInt8 {
    case tensor = 1
    case optimizer = 2
    case accumulator = 3
    case scope = 4
    case average = 5
    case lossScaler = 6

    var name: StaticString {
        switch self {
        case .tensor: "ga_tensor"
        case .optimizer: "ga_optimizer"
        case .accumulator: "ga_accumulator"
        case .scope: "ga_scope"
        case .average: "ga_average"
        case .lossScaler: "ga_loss_scaler"
        }
    }
}

/// The objects that C holds, by handle.
///
/// A handle is no address but a number: the slot of a table, how often the slot was used before, and the kind. So a
/// freed handle, a handle of another kind or a stray pointer is recognised instead of followed.
final class HandleTable: @unchecked Sendable {
    static let shared: HandleTable = {
        let table = HandleTable()
        Runtime.holdDuringFork(table.lock)
        return table
    }()

    private let lock = Lock()
    /// Under the lock. By address, so that the runtime does not check what the lock makes sure of.
    private let slots = UnsafeMutablePointer<HandleSlots>.allocate(capacity: 1)

    private init() { slots.initialize(to: HandleSlots()) }

    /// A handle for an object, to be freed with `scope` if that is a live one.
    func insert(_ object: AnyObject, _ kind: HandleKind, in scope: OpaquePointer? = nil) throws(GAError)
        -> OpaquePointer
    {
        lock.lock()
        defer { lock.unlock() }
        guard let handle = slots.pointee.insert(object, kind, in: scope) else {
            throw GAError(.outOfMemory, "\(HandleSlots.most) handles are alive: free those that are not needed")
        }
        return handle
    }

    func find(_ handle: OpaquePointer, _ kind: HandleKind) -> AnyObject? {
        lock.lock()
        defer { lock.unlock() }
        return slots.pointee.find(handle, kind)
    }

    /// Forgets the handle and returns its object.
    func remove(_ handle: OpaquePointer, _ kind: HandleKind) -> AnyObject? {
        lock.lock()
        defer { lock.unlock() }
        return slots.pointee.remove(handle, kind)
    }

    /// Forgets a scope and its tensors but those of `kept`, which move to the scope around it; returns the objects.
    func close(_ scope: OpaquePointer, keeping kept: Set<OpaquePointer>, outer: OpaquePointer?) -> [AnyObject] {
        lock.lock()
        defer { lock.unlock() }
        return slots.pointee.close(scope, keeping: kept, outer: outer)
    }
}

/// The slots of a table, and which of them are free. A scope and its tensors are linked in a ring.
private struct HandleSlots {
    private struct Slot {
        var generation: UInt64 = 0
        var kind: HandleKind?
        var object: AnyObject?
        /// Neighbours in the ring of a scope, or this slot itself. Of a free slot, `next` is another one.
        var previous: Int
        var next: Int
    }

    static let most = 1 << slotBits
    private static let slotBits: UInt64 = 28
    private static let generationMask: UInt64 = (1 << 30) - 1
    private static let none = -1

    private var slots: [Slot] = []
    private var firstFree = none

    /// nil if there are as many as there can be.
    mutating func insert(_ object: AnyObject, _ kind: HandleKind, in scope: OpaquePointer?) -> OpaquePointer? {
        guard let index = freeSlot() else { return nil }
        let generation = (slots[index].generation &+ 1) & HandleSlots.generationMask
        slots[index] = Slot(generation: generation, kind: kind, object: object, previous: index, next: index)
        if let scope, let ring = slot(of: scope, .scope) { link(index, into: ring) }
        return handle(of: index, kind)
    }

    private mutating func freeSlot() -> Int? {
        if firstFree != HandleSlots.none {
            defer { firstFree = slots[firstFree].next }
            return firstFree
        }
        guard slots.count < HandleSlots.most else { return nil }
        slots.append(Slot(previous: slots.count, next: slots.count))
        return slots.count - 1
    }

    func find(_ handle: OpaquePointer, _ kind: HandleKind) -> AnyObject? {
        slot(of: handle, kind).flatMap { slots[$0].object }
    }

    mutating func remove(_ handle: OpaquePointer, _ kind: HandleKind) -> AnyObject? {
        slot(of: handle, kind).flatMap { empty($0) }
    }

    mutating func close(_ scope: OpaquePointer, keeping kept: Set<OpaquePointer>, outer: OpaquePointer?) -> [AnyObject]
    {
        guard let ring = slot(of: scope, .scope) else { return [] }
        let outerRing = outer.flatMap { slot(of: $0, .scope) }
        var objects: [AnyObject] = []
        while case let index = slots[ring].next, index != ring {
            if !kept.isEmpty && kept.contains(handle(of: index, .tensor)) {
                unlink(index)
                if let outerRing { link(index, into: outerRing) }
            } else if let object = empty(index) {
                objects.append(object)
            }
        }
        if let object = empty(ring) { objects.append(object) }
        return objects
    }

    private func handle(of index: Int, _ kind: HandleKind) -> OpaquePointer {
        let generation = slots[index].generation << (HandleSlots.slotBits + 4)
        return OpaquePointer(bitPattern: UInt(generation | UInt64(index) << 4 | UInt64(kind.rawValue)))!
    }

    private func slot(of handle: OpaquePointer, _ kind: HandleKind) -> Int? {
        let number = UInt64(UInt(bitPattern: handle))
        let index = Int(number >> 4 & ((1 << HandleSlots.slotBits) - 1))
        guard number & 15 == UInt64(kind.rawValue), index < slots.count, slots[index].kind == kind,
            slots[index].generation == number >> (HandleSlots.slotBits + 4)
        else { return nil }
        return index
    }

    /// Makes a slot a free one, and returns its object.
    private mutating func empty(_ index: Int) -> AnyObject? {
        unlink(index)
        let object = slots[index].object.take()
        slots[index].kind = nil
        slots[index].next = firstFree
        firstFree = index
        return object
    }

    private mutating func link(_ index: Int, into ring: Int) {
        let last = slots[ring].previous
        slots[index].previous = last
        slots[index].next = ring
        slots[last].next = index
        slots[ring].previous = index
    }

    private mutating func unlink(_ index: Int) {
        let (previous, next) = (slots[index].previous, slots[index].next)
        slots[previous].next = next
        slots[next].previous = previous
        slots[index].previous = index
        slots[index].next = index
    }
}

/// The object of a handle. Errors: `invalidArgument` for NULL, a freed handle or one of another kind.
func borrow<Object: AnyObject>(
    _ handle: OpaquePointer?, _ kind: HandleKind, _ argument: @autoclosure () -> String
) throws(GAError) -> Object {
    guard let handle else {
        throw GAError(.invalidArgument, "\(argument()) is NULL: pass a \(kind.name)")
    }
    guard let object = HandleTable.shared.find(handle, kind) as? Object else {
        throw GAError(
            .invalidArgument, "\(argument()) is no live \(kind.name): was it freed, or is it of another type?")
    }
    return object
}

func tensor(_ handle: OpaquePointer?, _ argument: @autoclosure () -> String) throws(GAError) -> Tensor {
    try borrow(handle, .tensor, argument())
}

/// A tensor that may be NULL.
func optionalTensor(
    _ handle: OpaquePointer?, _ argument: @autoclosure () -> String
) throws(GAError) -> Tensor? {
    handle == nil ? nil : try tensor(handle, argument())
}

/// The tensors of an array. Errors: `invalidArgument` for a negative count or a NULL array that is not empty.
func tensors(
    _ handles: UnsafePointer<OpaquePointer?>?, _ count: Int64, _ argument: StaticString,
    countedBy counter: StaticString = "count"
) throws(GAError) -> [Tensor] {
    let pointers = try array(handles, count, argument, countedBy: counter)
    var result: [Tensor] = []
    result.reserveCapacity(pointers.count)
    for (index, handle) in pointers.enumerated() { result.append(try tensor(handle, "\(argument)[\(index)]")) }
    return result
}

/// The elements of an argument of the caller. Errors: `invalidArgument` for a count outside of its range or a NULL
/// array that is not empty.
func array<Element>(
    _ elements: UnsafePointer<Element>?, _ count: Int64, most: Int64 = 1 << 27, _ argument: StaticString,
    countedBy counter: StaticString = "count"
) throws(GAError) -> UnsafeBufferPointer<Element> {
    guard count >= 0 && count <= most else {
        throw GAError(.invalidArgument, "\(counter) of \(argument) is \(count): it must be in 0 ... \(most)")
    }
    guard elements != nil || count == 0 else {
        throw GAError(.invalidArgument, "\(argument) is NULL, but its \(counter) is \(count)")
    }
    return UnsafeBufferPointer(start: elements, count: Int(count))
}

/// An argument that must not be NULL.
func required<Pointer>(_ pointer: Pointer?, _ argument: StaticString) throws(GAError) -> Pointer {
    guard let pointer else { throw GAError(.invalidArgument, "\(argument) is NULL") }
    return pointer
}
