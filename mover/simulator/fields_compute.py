"""The fields of VM, VM_guest_metrics, VBD, VIF and VTPM. See `fields` for how a line is read.

Source: the data model, xen-api ocaml/idl/datamodel*.ml; a test compares these tables with it.
"""

from __future__ import annotations

VM = """
rw!  HVM_boot_params               (string -> string) map
con! HVM_boot_policy               string
con  HVM_shadow_multiplier         float = 1.0
con  NVRAM                         (string -> string) map
rw!  PCI_bus                       string
rw!  PV_args                       string
rw!  PV_bootloader                 string
rw!  PV_bootloader_args            string
rw!  PV_kernel                     string
rw!  PV_legacy_args                string
rw!  PV_ramdisk                    string
ro   VBDs                          VBD ref set
con! VCPUs_at_startup              int
con! VCPUs_max                     int
rw!  VCPUs_params                  (string -> string) map
ro   VGPUs                         VGPU ref set
ro   VIFs                          VIF ref set
ro   VTPMs                         VTPM ref set
ro   VUSBs                         VUSB ref set
con! actions_after_crash           enum on_crash_behaviour = restart
rw!  actions_after_reboot          enum on_normal_exit = restart
rw!  actions_after_shutdown        enum on_normal_exit = destroy
rw   actions_after_softreboot      enum on_softreboot_behavior = soft_reboot
rw!  affinity                      host ref
ro   allowed_operations            enum vm_operations set
con  appliance                     VM_appliance ref
ro   attached_PCIs                 PCI ref set
ro   bios_strings                  (string -> string) map
ro   blobs                         (string -> blob ref) map
rw   blocked_operations            (enum vm_operations -> string) map
ro   children                      VM ref set
ro   consoles                      console ref set
ro   crash_dumps                   crashdump ref set
ro   current_operations            (string -> enum vm_operations) map
con  domain_type                   enum domain_type = unspecified
ro   domarch                       string
ro   domid                         int = -1
con  generation_id                 string = 0:0
ro   guest_metrics                 VM_guest_metrics ref
con  ha_always_run                 bool
con  ha_restart_priority           string
rw   hardware_platform_version     int
con  has_vendor_device             bool = true
ro   is_a_snapshot                 bool
rw!  is_a_template                 bool
ro   is_control_domain             bool
ro   is_default_template           bool
con  is_snapshot_from_vmpp         bool
con  is_vmss_snapshot              bool
con  last_boot_CPU_flags           (string -> string) map
con  last_booted_record            string
con! memory_dynamic_max            int
con! memory_dynamic_min            int
ro   memory_overhead               int
con! memory_static_max             int
con! memory_static_min             int
con  memory_target                 int
ro   metrics                       VM_metrics ref
rw   name_description              string
rw   name_label                    string
con  order                         int
rw!  other_config                  (string -> string) map
ro   parent                        VM ref
ro   pending_guidances             enum update_guidances set
ro   pending_guidances_full        enum update_guidances set
ro   pending_guidances_recommended enum update_guidances set
rw!  platform                      (string -> string) map
con  power_state                   enum vm_power_state = Halted
con  protection_policy             VMPP ref
rw!  recommendations               string
con  reference_label               string
ro   requires_reboot               bool
ro   resident_on                   host ref
ro   scheduled_to_be_resident_on   host ref
con  shutdown_delay                int
ro   snapshot_info                 (string -> string) map
ro   snapshot_metadata             string
ro   snapshot_of                   VM ref
con  snapshot_schedule             VMSS ref
ro   snapshot_time                 datetime
ro   snapshots                     VM ref set
con  start_delay                   int
rw   suspend_SR                    SR ref
con  suspend_VDI                   VDI ref
rw   tags                          string set
ro   transportable_snapshot_id     string
rw!  user_version                  int
ro   uuid                          string
con  version                       int
rw   xenstore_data                 (string -> string) map
"""

VM_GUEST_METRICS = """
ro   PV_drivers_detected   bool
ro   PV_drivers_up_to_date bool
ro   PV_drivers_version    (string -> string) map
ro   can_use_hotplug_vbd   enum tristate_type = unspecified
ro   can_use_hotplug_vif   enum tristate_type = unspecified
ro   disks                 (string -> string) map
ro   last_updated          datetime
ro   live                  bool
ro   memory                (string -> string) map
ro   networks              (string -> string) map
ro   os_version            (string -> string) map
ro   other                 (string -> string) map
rw   other_config          (string -> string) map
ro   uuid                  string
"""

VBD = """
con! VDI                      VDI ref
con! VM                       VM ref
ro   allowed_operations       enum vbd_operations set
rw!  bootable                 bool
ro   current_operations       (string -> enum vbd_operations) map
con  currently_attached       bool
con  device                   string
con! empty                    bool
ro   metrics                  VBD_metrics ref
con! mode                     enum vbd_mode = RW
rw!  other_config             (string -> string) map
rw!  qos_algorithm_params     (string -> string) map
rw!  qos_algorithm_type       string
ro   qos_supported_algorithms string set
ro   runtime_properties       (string -> string) map
ro   status_code              int
ro   status_detail            string
ro   storage_lock             bool
rw!  type                     enum vbd_type = Disk
rw   unpluggable              bool = true
rw!  userdevice               string
ro   uuid                     string
"""

VIF = """
con! MAC                      string
ro   MAC_autogenerated        bool
con! MTU                      int = 1500
con! VM                       VM ref
ro   allowed_operations       enum vif_operations set
ro   current_operations       (string -> enum vif_operations) map
con  currently_attached       bool
con! device                   string
ro   ipv4_addresses           string set
con  ipv4_allowed             string set
ro   ipv4_configuration_mode  enum vif_ipv4_configuration_mode = None
ro   ipv4_gateway             string
ro   ipv6_addresses           string set
con  ipv6_allowed             string set
ro   ipv6_configuration_mode  enum vif_ipv6_configuration_mode = None
ro   ipv6_gateway             string
con  locking_mode             enum vif_locking_mode = network_default
ro   metrics                  VIF_metrics ref
con! network                  network ref
rw!  other_config             (string -> string) map
rw!  qos_algorithm_params     (string -> string) map
rw!  qos_algorithm_type       string
ro   qos_supported_algorithms string set
ro   runtime_properties       (string -> string) map
ro   status_code              int
ro   status_detail            string
ro   uuid                     string
"""

VTPM = """
con  VM                  VM ref
ro   allowed_operations  enum vtpm_operations set
ro   backend             VM ref
ro   current_operations  (string -> enum vtpm_operations) map
ro   is_protected        bool
con  is_unique           bool
ro   persistence_backend enum persistence_backend = xapi
ro   uuid                string
"""
