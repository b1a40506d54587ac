"""The fields of session, task, event, message, pool, host, network and PIF. See `fields` for how a line is read.

Source: the data model, xen-api ocaml/idl/datamodel*.ml; a test compares these tables with it.
"""

from __future__ import annotations

SESSION = """
ro   auth_user_name     string
ro   auth_user_sid      string
ro   client_certificate bool
ro   is_local_superuser bool
ro   last_active        datetime
ro   originator         string
rw   other_config       (string -> string) map
con  parent             session ref
ro   pool               bool
con  rbac_permissions   string set
ro   subject            subject ref
ro   tasks              task ref set
ro   this_host          host ref
ro   this_user          user ref
ro   uuid               string
ro   validation_time    datetime
"""

TASK = """
ro   allowed_operations enum task_allowed_operations set
ro   backtrace          string
ro   created            datetime
ro   current_operations (string -> enum task_allowed_operations) map
ro   error_info         string set
ro   finished           datetime
ro   name_description   string
ro   name_label         string
rw   other_config       (string -> string) map
ro   progress           float
ro   resident_on        host ref
ro   result             string
ro   status             enum task_status_type = pending
ro   subtask_of         task ref
ro   subtasks           task ref set
ro   type               string
ro   uuid               string
"""

EVENT = """
con  class     string
con  id        int
con  obj_uuid  string
con  operation enum event_operation = add
con  ref       string
ro   snapshot  <class> record
con  timestamp datetime
"""

MESSAGE = """
ro   body      string
ro   cls       enum cls = VM
ro   name      string
ro   obj_uuid  string
ro   priority  int
ro   timestamp datetime
ro   uuid      string
"""

POOL = """
ro   allowed_operations              enum pool_allowed_operations set
ro   blobs                           (string -> blob ref) map
ro   client_certificate_auth_enabled bool
ro   client_certificate_auth_name    string
rw   coordinator_bias                bool
ro   cpu_info                        (string -> string) map
rw   crash_dump_SR                   SR ref
ro   current_operations              (string -> enum pool_allowed_operations) map
con  custom_uefi_certificates        string
rw   default_SR                      SR ref
con  ext_auth_max_threads            int
ro   guest_agent_config              (string -> string) map
rw   gui_config                      (string -> string) map
rw   ha_allow_overcommit             bool
ro   ha_cluster_stack                string
ro   ha_configuration                (string -> string) map
ro   ha_enabled                      bool
ro   ha_host_failures_to_tolerate    int
ro   ha_overcommitted                bool
ro   ha_plan_exists_for              int
ro   ha_statefiles                   string set
rw   health_check_config             (string -> string) map
ro   igmp_snooping_enabled           bool
rw   is_psr_pending                  bool
ro   last_update_sync                datetime
rw   live_patching_disabled          bool
con  local_auth_max_threads          int
ro   master                          host ref
ro   metadata_VDIs                   VDI ref set
rw   migration_compression           bool = false
rw   name_description                string
rw   name_label                      string
rw   other_config                    (string -> string) map
rw   policy_no_vendor_device         bool
ro   redo_log_enabled                bool
ro   redo_log_vdi                    VDI ref
ro   repositories                    Repository ref set
ro   repository_proxy_password       secret ref
ro   repository_proxy_url            string
ro   repository_proxy_username       string
ro   restrictions                    (string -> string) map
rw   suspend_image_SR                SR ref
rw   tags                            string set
ro   telemetry_frequency             enum telemetry_frequency = weekly
ro   telemetry_next_collection       datetime
ro   telemetry_uuid                  secret ref
ro   tls_verification_enabled        bool = true
con  uefi_certificates               string
ro   update_sync_day                 int
ro   update_sync_enabled             bool
ro   update_sync_frequency           enum update_sync_frequency = weekly
ro   uuid                            string
ro   vswitch_controller              string
rw   wlb_enabled                     bool
ro   wlb_url                         string
ro   wlb_username                    string
rw   wlb_verify_cert                 bool
"""

HOST = """
ro   API_version_major                  int
ro   API_version_minor                  int
ro   API_version_vendor                 string
ro   API_version_vendor_implementation  (string -> string) map
ro   PBDs                               PBD ref set
ro   PCIs                               PCI ref set
ro   PGPUs                              PGPU ref set
ro   PIFs                               PIF ref set
ro   PUSBs                              PUSB ref set
rw   address                            string
ro   allowed_operations                 enum host_allowed_operations set
ro   bios_strings                       (string -> string) map
ro   blobs                              (string -> blob ref) map
con  capabilities                       string set
ro   certificates                       Certificate ref set
ro   chipset_info                       (string -> string) map
ro   control_domain                     VM ref
ro   cpu_configuration                  (string -> string) map
ro   cpu_info                           (string -> string) map
rw   crash_dump_sr                      SR ref
ro   crashdumps                         host_crashdump ref set
ro   current_operations                 (string -> enum host_allowed_operations) map
rw   display                            enum host_display = enabled
ro   edition                            string
ro   editions                           string set
ro   enabled                            bool = true
ro   external_auth_configuration        (string -> string) map
ro   external_auth_service_name         string
ro   external_auth_type                 string
ro   features                           Feature ref set
rw   guest_VCPUs_params                 (string -> string) map
ro   ha_network_peers                   string set
ro   ha_statefiles                      string set
ro   host_CPUs                          host_cpu ref set
rw   hostname                           string
ro   https_only                         bool
con  iscsi_iqn                          string
ro   last_software_update               datetime
ro   last_update_hash                   string
ro   latest_synced_updates_applied      enum latest_synced_updates_applied_state = unknown
ro   license_params                     (string -> string) map
rw   license_server                     (string -> string) map
con  local_cache_sr                     SR ref
rw   logging                            (string -> string) map
ro   memory_overhead                    int
ro   metrics                            host_metrics ref
con  multipathing                       bool
rw   name_description                   string
rw   name_label                         string
ro   numa_affinity_policy               enum host_numa_affinity_policy = default_policy
rw   other_config                       (string -> string) map
ro   patches                            host_patch ref set
ro   pending_guidances                  enum update_guidances set
ro   pending_guidances_full             enum update_guidances set
ro   pending_guidances_recommended      enum update_guidances set
ro   power_on_config                    (string -> string) map
ro   power_on_mode                      string
ro   resident_VMs                       VM ref set
ro   sched_policy                       string
con  software_version                   (string -> string) map
con  ssl_legacy                         bool
ro   supported_bootloaders              string set
rw   suspend_image_sr                   SR ref
rw   tags                               string set
ro   tls_verification_enabled           bool
con  uefi_certificates                  string
ro   updates                            pool_update ref set
ro   updates_requiring_reboot           pool_update ref set
ro   uuid                               string
ro   virtual_hardware_platform_versions int set
"""

NETWORK = """
rw   MTU                  int = 1500
ro   PIFs                 PIF ref set
ro   VIFs                 VIF ref set
ro   allowed_operations   enum network_operations set
ro   assigned_ips         (VIF ref -> string) map
ro   blobs                (string -> blob ref) map
con  bridge               string
ro   current_operations   (string -> enum network_operations) map
ro   default_locking_mode enum network_default_locking_mode = unlocked
con  managed              bool = true
rw   name_description     string
rw   name_label           string
rw!  other_config         (string -> string) map
ro   purpose              enum network_purpose set
rw   tags                 string set
ro   uuid                 string
"""

PIF = """
ro   DNS                     string
ro   IP                      string
ro   IPv6                    string set
con  MAC                     string
con  MTU                     int = 1500
ro   PCI                     PCI ref
con  VLAN                    int = -1
ro   VLAN_master_of          VLAN ref
ro   VLAN_slave_of           VLAN ref set
ro   bond_master_of          Bond ref set
ro   bond_slave_of           Bond ref
ro   capabilities            string set
ro   currently_attached      bool
con  device                  string
ro   disallow_unplug         bool
ro   gateway                 string
con  host                    host ref
ro   igmp_snooping_status    enum pif_igmp_status = unknown
ro   ip_configuration_mode   enum ip_configuration_mode = Static
ro   ipv6_configuration_mode enum ipv6_configuration_mode = None
ro   ipv6_gateway            string
con  managed                 bool = true
ro   management              bool
ro   metrics                 PIF_metrics ref
ro   netmask                 string
con  network                 network ref
rw   other_config            (string -> string) map
ro   physical                bool = true
ro   primary_address_type    enum primary_address_type = IPv4
ro   properties              (string -> string) map
ro   sriov_logical_PIF_of    network_sriov ref set
ro   sriov_physical_PIF_of   network_sriov ref set
ro   tunnel_access_PIF_of    tunnel ref set
ro   tunnel_transport_PIF_of tunnel ref set
ro   uuid                    string
"""
