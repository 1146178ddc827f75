import CShims
import GradAccum

/// What owns the tensors made on a thread since it was opened: the handle table links them with its handle.
final class Scope {
    private(set) var handle: OpaquePointer?
    private let outer: Scope?

    private static let slot = Int32(SHIMS_SLOT_SCOPE)

    private init(inside outer: Scope?) { self.outer = outer }

    /// The innermost open scope of this thread, which its thread slot does not own: its handle does.
    static var current: Scope? {
        shims_thread_slot(slot).map { Unmanaged<Scope>.fromOpaque($0).takeUnretainedValue() }
    }

    static func open() throws(GAError) -> OpaquePointer {
        let scope = Scope(inside: current)
        let handle = try HandleTable.shared.insert(scope, .scope)
        scope.handle = handle
        shims_set_thread_slot(slot, Unmanaged.passUnretained(scope).toOpaque())
        return handle
    }

    /// Closes a scope of this thread and those that were opened in it and left open.
    static func closeThrough(_ handle: OpaquePointer) {
        guard let scope = HandleTable.shared.find(handle, .scope) as? Scope else { return }
        while let inner = current {
            try? close(inner.handle, keeping: [])
            if inner === scope { return }
        }
    }

    /// Closes the innermost scope, handing the tensors of `kept` to the one around it.
    static func close(_ handle: OpaquePointer?, keeping kept: [OpaquePointer]) throws(GAError) {
        let scope: Scope = try borrow(handle, .scope, "scope")
        guard scope === current else {
            throw GAError(
                .state, "scope_close: scope is not the innermost open scope of this thread: close the inner ones first")
        }
        shims_set_thread_slot(slot, scope.outer.map { Unmanaged.passUnretained($0).toOpaque() })
        // Objects go without the lock: what they release may call the library.
        _ = HandleTable.shared.close(handle!, keeping: Set(kept), outer: scope.outer?.handle)
    }
}
